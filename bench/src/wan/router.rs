//! Carries packets from where they enter to where they arrive, when the [`Fabric`] says.
//!
//! One thread per group of hosts: it reads their devices in batches, asks the fabric for the time of arrival, keeps what is on
//! the way in a heap, and hands over what is due, all that is for one host together. It sleeps in `epoll_pwait2` until the next
//! packet is due, with a timer slack of a nanosecond and, where allowed, the highest priority: an emulated network must not
//! wait for the programs that use it.
//!
//! Packets of one host to another stay in order. Packets of different hosts that share a link may pass each other by as
//! much as two threads differ.

use std::cmp::{Ordering as CmpOrdering, Reverse};
use std::collections::BinaryHeap;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::fabric::Fabric;

/// Most bytes on the way in one router; more are dropped as by a full queue. 100 Gbit/s for 40 ms, a guess that is enough.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 20;

/// Packets read from one device before the others have their turn and what is due is handed over, and packets handed over
/// before devices are read again: at some 2 us each well below a millisecond.
const BATCH_PACKETS: usize = 64;

/// Threads at most; a thread carries several gigabits per second.
const THREADS_MAX: usize = 4;

/// Tag of the wake-up descriptor among the events of ports.
const WAKE: u64 = u64::MAX;

/// What a router reads packets from and hands them to.
pub(super) trait Wire: Send + Sync + 'static {
    /// What a thread that reads and hands over keeps between calls.
    type Scratch: Send + 'static;

    /// Most packets that are handed over in one call.
    const TOGETHER_MAX: usize;

    /// For one thread.
    fn scratch(&self) -> Self::Scratch;

    /// Descriptors to read, in nonblocking mode; the port is the index.
    fn ports(&self) -> Vec<BorrowedFd<'_>>;

    /// Reads what lies at the front of a port, one packet or several that were sent at once, and passes it to `take`.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; any other error concerns only what was read.
    fn receive(
        &self,
        port: usize,
        scratch: &mut Self::Scratch,
        take: &mut dyn FnMut(Received<'_>),
    ) -> io::Result<()>;

    /// Whether a packet is let in to host `to`; it may be changed on its way in.
    fn admit(&self, _from: usize, _to: usize, _packet: &mut [u8]) -> bool {
        true
    }

    /// Hands packets over to host `to`, at least one and at most [`Wire::TOGETHER_MAX`].
    ///
    /// # Errors
    /// If its device does not take them.
    fn deliver(&self, to: usize, packets: &[Flight], scratch: &mut Self::Scratch)
    -> io::Result<()>;

    /// Bytes of headers that links count in addition to what is read.
    fn header_bytes(&self) -> usize;
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A packet.
    Packet {
        from: usize,
        to: usize,
        packet: &'a [u8],
    },
    /// Something for nobody.
    Unroutable { from: usize, bytes: usize },
}

/// Running threads; dropping it stops them and drops what is on the way.
pub(super) struct Router {
    stop: Arc<AtomicBool>,
    mailboxes: Arc<[Mailbox]>,
    threads: Vec<JoinHandle<()>>,
}

impl Router {
    /// Starts to carry packets.
    ///
    /// # Errors
    /// If descriptors or threads run out.
    pub(super) fn start<W: Wire>(wire: Arc<W>, fabric: Arc<Fabric>) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::start_threads(wire, fabric, (cores / 2).clamp(1, THREADS_MAX))
    }

    fn start_threads<W: Wire>(wire: Arc<W>, fabric: Arc<Fabric>, count: usize) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mailboxes: Arc<[Mailbox]> = (0..count)
            .map(|_| Mailbox::new())
            .collect::<io::Result<Vec<_>>>()?
            .into();
        let mut router = Self {
            stop: Arc::clone(&stop),
            mailboxes: Arc::clone(&mailboxes),
            threads: Vec::with_capacity(count),
        };
        let start = Instant::now();
        for index in 0..count {
            let carrier = Carrier {
                epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
                scratch: wire.scratch(),
                wire: Arc::clone(&wire),
                stop: Arc::clone(&stop),
                due: Vec::with_capacity(BATCH_PACKETS),
                air: Airspace {
                    index,
                    fabric: Arc::clone(&fabric),
                    mailboxes: Arc::clone(&mailboxes),
                    start,
                    flights: BinaryHeap::new(),
                    serial: 0,
                    header_bytes: wire.header_bytes(),
                },
            };
            carrier.watch(count)?;
            router.threads.push(
                std::thread::Builder::new()
                    .name(format!("wan-{index}"))
                    .spawn(move || carrier.run())?,
            );
        }
        Ok(router)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for mailbox in self.mailboxes.iter() {
            mailbox.wake();
        }
        for thread in self.threads.drain(..) {
            // A panic in there has been printed; nothing is left to do about it.
            drop(thread.join());
        }
    }
}

/// A packet on the way.
pub(super) struct Flight {
    /// When it is handed over, or enters the downlink.
    release_ns: u64,
    /// When it has passed what it has passed.
    due_ns: u64,
    /// Among packets of equal time the one that entered first leaves first.
    serial: u64,
    from: usize,
    to: usize,
    /// The downlink is behind it, or it has yet to enter it as of `due_ns`.
    through_downlink: bool,
    packet: Box<[u8]>,
}

impl Flight {
    /// Who sent it.
    pub(super) fn from(&self) -> usize {
        self.from
    }

    /// As it lies on the wire.
    pub(super) fn packet(&self) -> &[u8] {
        &self.packet
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == CmpOrdering::Equal
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<CmpOrdering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> CmpOrdering {
        let key = |flight: &Self| (flight.release_ns, flight.due_ns, flight.serial);
        key(self).cmp(&key(other))
    }
}

/// Where threads leave packets for the thread that serves the receiving host.
struct Mailbox {
    flights: Mutex<Vec<Flight>>,
    /// Of everything on the way to the hosts of this thread, in the mailbox or in its heap.
    in_flight_bytes: AtomicUsize,
    wake: OwnedFd,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            flights: Mutex::new(Vec::new()),
            in_flight_bytes: AtomicUsize::new(0),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the thread is awake.
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread of the router.
struct Carrier<W: Wire> {
    epoll: OwnedFd,
    wire: Arc<W>,
    scratch: W::Scratch,
    stop: Arc<AtomicBool>,
    air: Airspace,
    /// What is handed over next; empty between calls.
    due: Vec<Flight>,
}

impl<W: Wire> Carrier<W> {
    /// Every `count`th port is this thread's.
    fn watch(&self, count: usize) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        for (port, fd) in self.wire.ports().into_iter().enumerate() {
            if port % count == self.air.index {
                epoll::add(
                    &self.epoll,
                    fd,
                    epoll::EventData::new_u64(port as u64),
                    flags,
                )?;
            }
        }
        let wake = &self.air.mailbox().wake;
        epoll::add(&self.epoll, wake, epoll::EventData::new_u64(WAKE), flags)?;
        Ok(())
    }

    fn run(mut self) {
        // Both are refinements: without them packets are somewhat later, which the lateness counter shows.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).ok();
        rustix::process::setpriority_process(Some(rustix::thread::gettid()), -20).ok();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        while !self.stop.load(Ordering::Acquire) {
            let timeout = self.hand_over_due();
            // An interrupted wait reports nothing, and the loop goes round.
            if epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()).is_err() {
                events.clear();
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE => self.air.empty_mailbox(),
                    port => {
                        self.read(port as usize);
                        self.hand_over_due();
                    }
                }
            }
        }
    }

    fn read(&mut self, port: usize) {
        let Self {
            wire, scratch, air, ..
        } = self;
        let mut packets = 0;
        while packets < BATCH_PACKETS {
            let read = wire.receive(port, scratch, &mut |received| {
                packets += 1;
                match received {
                    Received::Packet { from, to, packet } => air.take_off(from, to, packet),
                    Received::Unroutable { from, bytes } => air.fabric.unroutable(from, bytes),
                }
            });
            // Nothing to read, or a device that is going away: the next event tells.
            if read.is_err() {
                return;
            }
        }
    }

    /// Hands over what is due; how long until the next packet is, if there is one.
    fn hand_over_due(&mut self) -> Option<Timespec> {
        loop {
            let now_ns = self.air.now_ns();
            let wait_ns = self.air.land(now_ns, &mut self.due);
            self.due.retain_mut(|flight| {
                let admitted = self.wire.admit(flight.from, flight.to, &mut flight.packet);
                if !admitted {
                    self.air.arrived(flight, now_ns, false);
                }
                admitted
            });
            // Each sender's packets stay in their order.
            self.due.sort_by_key(|flight| flight.to);
            for together in self
                .due
                .chunk_by(|one, next| one.to == next.to)
                .flat_map(|same_host| same_host.chunks(W::TOGETHER_MAX))
            {
                let to = together[0].to;
                let taken = self.wire.deliver(to, together, &mut self.scratch);
                for flight in together {
                    self.air.arrived(flight, now_ns, taken.is_ok());
                }
            }
            self.due.clear();
            match wait_ns {
                Some(0) => {}
                Some(wait_ns) => {
                    return Some(Timespec {
                        tv_sec: (wait_ns / 1_000_000_000) as i64,
                        tv_nsec: (wait_ns % 1_000_000_000) as _,
                    });
                }
                None => return None,
            }
        }
    }
}

/// What is on the way to the hosts of one thread.
struct Airspace {
    /// Of the thread.
    index: usize,
    fabric: Arc<Fabric>,
    mailboxes: Arc<[Mailbox]>,
    start: Instant,
    flights: BinaryHeap<Reverse<Flight>>,
    serial: u64,
    header_bytes: usize,
}

impl Airspace {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.index]
    }

    /// A host sends a packet.
    fn take_off(&mut self, from: usize, to: usize, packet: &[u8]) {
        let bytes = packet.len() + self.header_bytes;
        let Some(due_ns) = self.fabric.enter(self.now_ns(), from, to, bytes) else {
            return;
        };
        let owner = to % self.mailboxes.len();
        let mailbox = &self.mailboxes[owner];
        if mailbox.in_flight_bytes.load(Ordering::Relaxed) + packet.len()
            > IN_FLIGHT_BYTES_MAX / self.mailboxes.len()
        {
            self.fabric.overflowed(from, to, bytes);
            return;
        }
        mailbox
            .in_flight_bytes
            .fetch_add(packet.len(), Ordering::Relaxed);
        let flight = Flight {
            release_ns: due_ns.next_multiple_of(self.fabric.hold_ns(from, to)),
            due_ns,
            serial: self.serial,
            from,
            to,
            through_downlink: false,
            packet: packet.into(),
        };
        self.serial += 1;
        if owner == self.index {
            self.flights.push(Reverse(flight));
            return;
        }
        let mut flights = mailbox.lock();
        flights.push(flight);
        // Whoever fills an empty mailbox wakes its owner; the owner empties it as a whole.
        if flights.len() == 1 {
            mailbox.wake();
        }
    }

    fn empty_mailbox(&mut self) {
        let mailbox = self.mailbox();
        rustix::io::read(&mailbox.wake, &mut [0; 8]).ok();
        let arrived = std::mem::take(&mut *mailbox.lock());
        for mut flight in arrived {
            flight.serial = self.serial;
            self.serial += 1;
            self.flights.push(Reverse(flight));
        }
    }

    /// Moves what is due into `due`, up to [`BATCH_PACKETS`]; how long until the next packet is, if there is one.
    fn land(&mut self, now_ns: u64, due: &mut Vec<Flight>) -> Option<u64> {
        loop {
            let wait_ns = self.flights.peek()?.0.release_ns.saturating_sub(now_ns);
            if wait_ns > 0 || due.len() == BATCH_PACKETS {
                return Some(wait_ns);
            }
            let Reverse(mut flight) = self.flights.pop()?;
            if !flight.through_downlink {
                flight.through_downlink = true;
                let bytes = flight.packet.len() + self.header_bytes;
                match self
                    .fabric
                    .leave(flight.due_ns, flight.from, flight.to, bytes)
                {
                    Some(due_ns) => {
                        let hold_ns = self.fabric.hold_ns(flight.from, flight.to);
                        flight.release_ns = due_ns.next_multiple_of(hold_ns);
                        flight.due_ns = due_ns;
                    }
                    None => {
                        self.forget(&flight);
                        continue;
                    }
                }
                if flight.release_ns > now_ns {
                    self.flights.push(Reverse(flight));
                    continue;
                }
            }
            due.push(flight);
        }
    }

    /// A flight is over.
    fn arrived(&self, flight: &Flight, now_ns: u64, taken: bool) {
        let bytes = flight.packet.len() + self.header_bytes;
        if taken {
            let late_ns = now_ns.saturating_sub(flight.due_ns);
            self.fabric
                .delivered(flight.from, flight.to, bytes, late_ns);
        } else {
            self.fabric.refused(flight.from, flight.to, bytes);
        }
        self.forget(flight);
    }

    fn forget(&self, flight: &Flight) {
        self.mailbox()
            .in_flight_bytes
            .fetch_sub(flight.packet.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::relay::RelayWire;
    use super::super::{Link, Topology};
    use super::*;

    #[test]
    fn several_threads_deliver_everything_and_keep_the_order_of_each_sender() {
        const HOSTS: u8 = 5;
        const PACKETS: u8 = 20;
        let sockets: Vec<_> = (0..HOSTS)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let endpoints: Vec<_> = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap())
            .collect();
        let link = Link::delayed(Duration::from_millis(5)).with_jitter(Duration::from_millis(5));
        let wire = Arc::new(RelayWire::new(&endpoints).unwrap());
        let fabric = Arc::new(Fabric::new(&Topology::mesh(usize::from(HOSTS), link)));
        let router = Router::start_threads(Arc::clone(&wire), Arc::clone(&fabric), 3).unwrap();
        for number in 0..PACKETS {
            for from in 0..HOSTS {
                for to in (0..HOSTS).filter(|to| *to != from) {
                    let address = wire.seat(usize::from(from), usize::from(to)).address;
                    sockets[usize::from(from)]
                        .send_to(&[from, number], address)
                        .unwrap();
                }
            }
        }
        for (to, socket) in (0..HOSTS).zip(&sockets) {
            socket
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            let mut next = [0; HOSTS as usize];
            for _ in 0..PACKETS * (HOSTS - 1) {
                let mut packet = [0; 2];
                socket.recv(&mut packet).unwrap();
                let [from, number] = packet;
                assert_ne!(from, to);
                assert_eq!(number, next[usize::from(from)], "from {from} to {to}");
                next[usize::from(from)] += 1;
            }
        }
        drop(router);
        for pair in fabric.counters().pairs.iter().flatten() {
            assert_eq!(pair.delivered, pair.sent);
        }
    }
}
