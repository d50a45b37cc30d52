//! Whose a namespace is, and the removal of those whose owner is dead.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::{DIRECTORY, NetnsError, remove};

/// Waits until its input ends, which is when the owner is gone, and removes what the owner has left: namespaces whose names
/// begin with the first argument. A process that is being killed may still start another one: hence again, a few times.
const WARDEN: &str = r#"
trap '' HUP INT TERM
cat >/dev/null
for path in /run/netns/"$1"*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        pids=$(ip netns pids "$name")
        [ -n "$pids" ] || break
        kill -KILL $pids
        sleep 0.05
    done
    ip netns del "$name"
done
"#;

/// How the names of this process's namespaces begin.
pub(super) fn prefix() -> Result<String, NetnsError> {
    let pid = std::process::id();
    let start = start_time(pid).ok_or_else(|| NetnsError::Io {
        what: "read the start time of this process".to_owned(),
        source: std::io::ErrorKind::InvalidData.into(),
    })?;
    Ok(format!("gm-{pid}-{start}-"))
}

/// Before the first namespace: removes what dead owners have left, and starts the warden of this process.
pub(super) fn watch() -> Result<(), NetnsError> {
    /// Never dropped: the end of its input is the end of this process.
    static WATCHED: Mutex<Option<Child>> = Mutex::new(None);
    let mut warden = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if warden.is_none() {
        sweep();
        let child = Command::new("sh")
            .args(["-c", WARDEN, "warden", &prefix()?])
            // Out of the terminal's way, whose interrupt goes to the whole group.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(NetnsError::io("start the warden of namespaces"))?;
        *warden = Some(child);
    }
    Ok(())
}

/// Removes the namespaces of dead owners, with the processes in them; how many there were.
pub fn sweep() -> usize {
    let Ok(entries) = std::fs::read_dir(Path::new(DIRECTORY)) else {
        return 0;
    };
    let orphans: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|(pid, start)| start_time(pid) != Some(start)))
        .collect();
    for name in &orphans {
        remove(name);
    }
    orphans.len()
}

/// Process id and start time of a namespace's owner, if it is one of ours.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix("gm-")?.splitn(3, '-');
    let pid = parts.next()?.parse().ok()?;
    let start = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((pid, start))
}

/// When a living process started, in clock ticks since the machine did: field 22 of `/proc/PID/stat` (proc(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything; the third follows the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let prefix = prefix().unwrap();
        let (pid, start) = owner(&format!("{prefix}3-ams-0")).unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!(Some(start), start_time(pid));
        for stranger in ["gm-", "gm-12", "gm-12-7", "gm-a-7-0-x", "other-12-7-0-x"] {
            assert_eq!(owner(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn a_process_that_has_ended_is_no_owner() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }
}
