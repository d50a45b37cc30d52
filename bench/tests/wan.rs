//! Emulated networks, from outside: with real sockets, processes and signals.
//!
//! Tests that need root, namespaces and TUN devices say so and pass where those are missing. Figures are judged as
//! `wan::check` explains: an error of the emulator is there in every attempt, one of the machine shows in the control.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gradmesh_bench::netns::{self, Namespace, VethLink};
use gradmesh_bench::wan::check::{CASES, Lane, Outcome};
use gradmesh_bench::wan::{Emulator, Link, RelayError, Site, Tally, Topology, UdpRelay};

/// One network at a time: they share the cores, and figures of one would show the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether namespaces can be had; says why not.
fn root_lane(test: &str) -> bool {
    match netns::available() {
        Ok(()) => true,
        Err(reason) => {
            eprintln!("{test} is skipped: {reason}");
            false
        }
    }
}

fn measure(lane: &Lane) {
    for case in CASES {
        let row = lane.measure(case).expect("the case can be measured");
        println!(
            "{:?} {}: asked {}, measured {:.4}, {:?} in attempt {}, control {:?} ms, {}",
            row.lane,
            row.quantity,
            row.asked,
            row.measured,
            row.outcome,
            row.attempts,
            row.control_ms,
            row.busy.as_deref().unwrap_or("undisturbed"),
        );
        assert_ne!(row.outcome, Outcome::Outside, "{row:?}");
        assert_eq!(row.reordered, 0, "{row:?}");
    }
}

#[test]
fn links_between_namespaces_are_as_asked() {
    let _alone = alone();
    if root_lane("links_between_namespaces_are_as_asked") {
        measure(&Lane::root().expect("the emulator starts"));
    }
}

#[test]
fn links_of_the_relay_are_as_asked() {
    let _alone = alone();
    measure(&Lane::relay().expect("the relay starts"));
}

/// Waits for a condition that another process brings about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not seen: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie that nobody has collected yet has ended all the same.
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

fn bind(namespace: &Namespace, address: impl Into<std::net::IpAddr>) -> UdpSocket {
    let address = SocketAddr::new(address.into(), 0);
    let socket = namespace
        .inside(|| UdpSocket::bind(address))
        .expect("the namespace can be entered")
        .expect("the host has its address");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("sockets have timeouts");
    socket
}

#[test]
fn dropping_a_network_kills_its_processes_and_leaves_nothing() {
    let _alone = alone();
    if !root_lane("dropping_a_network_kills_its_processes_and_leaves_nothing") {
        return;
    }
    let emulator = Emulator::start(&Topology::mesh(2, Link::default())).unwrap();
    let names: Vec<String> = emulator
        .hosts()
        .iter()
        .map(|host| host.namespace.name().to_owned())
        .collect();
    // A process that starts another one, of which only the namespace knows.
    let mut child = emulator.hosts()[0]
        .namespace
        .command("sh")
        .args(["-c", "sleep 1000 & echo $!; wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let grandchild: u32 = line.trim().parse().unwrap();
    assert!(is_running(grandchild));
    drop(emulator);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!is_running(grandchild));
    for name in names {
        assert!(!Path::new("/run/netns").join(&name).exists(), "{name}");
    }
}

#[test]
fn a_network_goes_with_its_owner_however_that_ends() {
    let _alone = alone();
    if !root_lane("a_network_goes_with_its_owner_however_that_ends") {
        return;
    }
    let topology = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/three-sites.toml");
    for signal in ["INT", "TERM", "KILL"] {
        // Jobs that a script starts in the background ignore interrupts, and so do their children, this test among them.
        let mut owner = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_gradmesh-bench")])
            .args(["wan", "exec", "--topology", topology, "--", "sleep", "1000"])
            .spawn()
            .unwrap();
        let prefix = format!("gm-{}-", owner.id());
        let mut sleepers = Vec::new();
        until("a process on every host", || {
            sleepers = namespaces(&prefix)
                .iter()
                .flat_map(|name| {
                    let output = Command::new("ip").args(["netns", "pids", name]).output();
                    let text = String::from_utf8(output.unwrap().stdout).unwrap();
                    text.lines()
                        .filter_map(|pid| pid.trim().parse::<u32>().ok())
                        .collect::<Vec<_>>()
                })
                .collect();
            sleepers.len() == 7
        });
        let killed = Command::new("kill")
            .args(["-s", signal, &owner.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        owner.wait().unwrap();
        until("the end of its namespaces", || {
            namespaces(&prefix).is_empty()
        });
        for pid in sleepers {
            assert!(!is_running(pid), "{pid} outlived SIG{signal}");
        }
    }
}

#[test]
fn what_a_dead_owner_left_is_swept_and_what_a_living_one_has_is_not() {
    let _alone = alone();
    if !root_lane("what_a_dead_owner_left_is_swept_and_what_a_living_one_has_is_not") {
        return;
    }
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let orphan = format!("gm-{}-1-0-orphan", dead.id());
    let added = Command::new("ip").args(["netns", "add", &orphan]).status();
    assert!(added.unwrap().success());
    let mut sleeper = Command::new("ip")
        .args(["netns", "exec", &orphan, "sleep", "1000"])
        .spawn()
        .unwrap();
    let living = Namespace::create("living").unwrap();
    until("the sleeper in its namespace", || {
        let output = Command::new("ip").args(["netns", "pids", &orphan]).output();
        !output.unwrap().stdout.is_empty()
    });
    netns::sweep();
    assert_eq!(sleeper.wait().unwrap().signal(), Some(9));
    assert!(namespaces(&orphan).is_empty());
    assert!(!namespaces(living.name()).is_empty());
}

#[test]
fn counters_tell_wan_from_lan_and_partitions_from_silence() {
    let _alone = alone();
    if !root_lane("counters_tell_wan_from_lan_and_partitions_from_silence") {
        return;
    }
    let topology = Topology::default()
        .with_site(Site::new("a", 2))
        .with_site(Site::new("b", 1));
    let emulator = Emulator::start(&topology).unwrap();
    let [one, neighbour, far] = emulator.hosts() else {
        panic!("three hosts");
    };
    let sender = bind(&one.namespace, one.address);
    let [near_socket, far_socket] =
        [neighbour, far].map(|host| bind(&host.namespace, host.address));
    let mut buffer = [0; 2000];
    let mut pass = |socket: &UdpSocket, bytes: usize| {
        sender
            .send_to(&vec![7; bytes], socket.local_addr().unwrap())
            .unwrap();
        let (read, source) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((read, source), (bytes, sender.local_addr().unwrap()));
    };
    for _ in 0..3 {
        pass(&near_socket, 100);
    }
    for _ in 0..2 {
        pass(&far_socket, 1000);
    }
    // More than the MTU: two fragments.
    pass(&far_socket, 1600);
    emulator.set_link(0, 1, &Link::severed()).unwrap();
    sender
        .send_to(&[0; 500], far_socket.local_addr().unwrap())
        .unwrap();
    until("the loss", || {
        emulator.counters().pairs[0][1].lost.packets == 1
    });
    emulator.set_link(0, 1, &Link::default()).unwrap();
    pass(&far_socket, 10);
    // The kernel's own multicast is for nobody, too.
    let unroutable = || emulator.counters().hosts[0].unroutable.packets;
    let before = unroutable();
    sender.send_to(&[0; 5], "192.0.2.1:9").unwrap();
    until("the stray packet", || unroutable() > before);

    let counters = emulator.counters();
    let tally = |packets, bytes| Tally { packets, bytes };
    let (lan, wan) = (counters.pairs[0][0], counters.pairs[0][1]);
    assert_eq!(lan.sent, tally(3, 3 * 128));
    assert_eq!(lan.delivered, lan.sent);
    // 1608 bytes of UDP are 1480 and 128 of two packets with 20 bytes of header each.
    let carried = tally(5, 2 * 1028 + 1500 + 148 + 38);
    assert_eq!(wan.delivered, carried);
    assert_eq!(wan.lost, tally(1, 528));
    assert_eq!(wan.sent, tally(6, carried.bytes + 528));
    assert_eq!(counters.wan_sent(0), wan.sent);
    assert_eq!(counters.wan_delivered(1), wan.delivered);
    assert_eq!(counters.wan_sent(1), tally(0, 0));
    assert_eq!(counters.hosts[1].delivered, lan.delivered);
    assert_eq!(
        counters.hosts[0].sent,
        tally(9, lan.sent.bytes + wan.sent.bytes)
    );
    assert_eq!(counters.hosts[0].name, "a-0");
}

#[test]
fn jumbo_frames_pass_whole() {
    let _alone = alone();
    if !root_lane("jumbo_frames_pass_whole") {
        return;
    }
    let topology = Topology {
        mtu: 9000,
        ..Topology::mesh(2, Link::default())
    };
    let emulator = Emulator::start(&topology).unwrap();
    let [one, other] = emulator.hosts() else {
        panic!("two hosts");
    };
    let sender = bind(&one.namespace, one.address);
    let receiver = bind(&other.namespace, other.address);
    sender
        .send_to(&[3; 8972], receiver.local_addr().unwrap())
        .unwrap();
    assert_eq!(receiver.recv(&mut [0; 9000]).unwrap(), 8972);
    assert_eq!(emulator.counters().pairs[0][1].sent.packets, 1);
}

#[test]
fn what_is_sent_or_arrives_in_one_piece_crosses_the_link_in_packets() {
    const BYTES: usize = 2_000_000;
    let _alone = alone();
    if !root_lane("what_is_sent_or_arrives_in_one_piece_crosses_the_link_in_packets") {
        return;
    }
    // Long enough that packets are handed over together.
    let link = Link::delayed(Duration::from_millis(50));
    let emulator = Emulator::start(&Topology::mesh(2, link)).unwrap();
    let [one, other] = emulator.hosts() else {
        panic!("two hosts");
    };
    let sender = bind(&one.namespace, one.address);
    let receiver = bind(&other.namespace, other.address);
    let to = receiver.local_addr().unwrap();
    // Equal ones are joined, one that is shorter ends a piece, one that is longer begins another.
    let lengths = [1472, 1472, 1472, 700, 1472, 700, 700, 1, 1472, 3];
    for (tag, length) in (0..).zip(lengths) {
        sender.send_to(&vec![tag; length], to).unwrap();
    }
    for (tag, length) in (0..).zip(lengths) {
        let mut datagram = [0; 2000];
        let bytes = receiver.recv(&mut datagram).unwrap();
        assert_eq!(datagram[..bytes], vec![tag; length], "datagram {tag}");
    }
    let packets = emulator.counters().pairs[0][1].sent.packets;
    assert_eq!(packets, lengths.len() as u64);

    let listener = other
        .namespace
        .inside(|| TcpListener::bind((other.address, 0)))
        .unwrap()
        .unwrap();
    let target = listener.local_addr().unwrap();
    let mut outgoing = one
        .namespace
        .inside(|| TcpStream::connect(target))
        .unwrap()
        .unwrap();
    let (mut incoming, _) = listener.accept().unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at * 31 % 251) as u8).collect();
    let mut received = vec![0; BYTES];
    std::thread::scope(|scope| {
        scope.spawn(|| outgoing.write_all(&sent).unwrap());
        incoming.read_exact(&mut received).unwrap();
    });
    assert!(sent == received, "the stream was changed");
    let counters = emulator.counters();
    let there = counters.pairs[0][1].sent;
    assert!(there.packets > BYTES as u64 / 1460, "{there:?}");
    assert!(there.bytes <= 1500 * there.packets, "{there:?}");
    assert_eq!(counters.hosts[0].overrun_packets, 0);
}

#[test]
fn a_switch_of_veths_is_never_faster_than_its_rate_and_shares_a_receivers_port() {
    const BITS_PER_S: u64 = 100_000_000;
    const BYTES: usize = 2_000_000;
    let _alone = alone();
    if !root_lane("a_switch_of_veths_is_never_faster_than_its_rate_and_shares_a_receivers_port") {
        return;
    }
    let switch = VethLink::start(3, Some(BITS_PER_S), 1500).unwrap();
    let hosts: Vec<_> = switch.hosts().collect();
    let (receiver, address) = hosts[0];
    let listener = receiver
        .inside(|| TcpListener::bind((address, 0)))
        .unwrap()
        .unwrap();
    let target = listener.local_addr().unwrap();
    let mut outgoing: Vec<TcpStream> = hosts[1..]
        .iter()
        .map(|(namespace, _)| {
            namespace
                .inside(|| TcpStream::connect(target))
                .unwrap()
                .unwrap()
        })
        .collect();
    let mut incoming: Vec<TcpStream> = outgoing
        .iter()
        .map(|_| listener.accept().unwrap().0)
        .collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for stream in &mut outgoing {
            scope.spawn(|| stream.write_all(&vec![0; BYTES]).unwrap());
        }
        for stream in &mut incoming {
            scope.spawn(|| stream.read_exact(&mut vec![0; BYTES]).unwrap());
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    // Two buckets of 16 KiB may pass at once; two senders at full rate each would need half of this.
    let bound = ((2 * BYTES - 2 * 16 * 1024) * 8) as f64 / BITS_PER_S as f64;
    println!("2 x {BYTES} bytes to one port: {seconds:.3} s, bound {bound:.3} s");
    assert!(seconds > bound, "{seconds} s, bound {bound} s");
}

#[test]
fn the_relay_shows_every_host_one_address_of_every_other() {
    let _alone = alone();
    let sockets = [0; 3].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let endpoints = sockets
        .each_ref()
        .map(|socket| socket.local_addr().unwrap());
    let relay = UdpRelay::start(&Topology::mesh(3, Link::default()), &endpoints).unwrap();
    let mut buffer = [0; 100];
    for from in 0..3 {
        for to in (0..3).filter(|to| *to != from) {
            let message = [from as u8, to as u8];
            sockets[to]
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            sockets[from]
                .send_to(&message, relay.address(from, to))
                .unwrap();
            let (bytes, source) = sockets[to].recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..bytes], message);
            // The answer goes the same way back.
            assert_eq!(source, relay.address(to, from));
        }
    }
    // Who is not of the relay is not carried.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"let me in", relay.address(0, 1)).unwrap();
    until("the refusal", || {
        relay.counters().hosts[0].unroutable.packets == 1
    });
    assert_eq!(relay.counters().pairs[0][1].sent.packets, 1);
}

#[test]
fn a_relay_wants_an_endpoint_on_loopback_for_every_host() {
    let topology = Topology::mesh(2, Link::default());
    let loopback: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let elsewhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
    assert!(matches!(
        UdpRelay::start(&topology, &[loopback]),
        Err(RelayError::Endpoints {
            endpoints: 1,
            hosts: 2
        })
    ));
    assert!(matches!(
        UdpRelay::start(&topology, &[loopback, elsewhere]),
        Err(RelayError::NotLoopback { endpoint }) if endpoint == elsewhere
    ));
    assert!(matches!(
        UdpRelay::start(&Topology::mesh(25, Link::default()), &[loopback; 25]),
        Err(RelayError::TooMany { hosts: 25 })
    ));
}
