//! Where and when numbers were measured.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Machine, commit and date; what this system does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Model name of the first processor.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: Option<usize>,
    /// Of the checkout that this was built in, as it is now; `-dirty` is appended when files differ from it.
    pub commit: Option<String>,
    /// In UTC, for example `2026-02-28T23:59:59Z`.
    pub date: Option<String>,
}

impl Origin {
    pub fn here_and_now() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        Self {
            cpu: cpu.as_deref().and_then(cpu_model),
            cores: thread::available_parallelism().ok().map(usize::from),
            commit: commit(),
            date: since.map(|since| utc(since.as_secs())),
        }
    }

    /// Two lines; what is not known is said to be so.
    pub fn to_text(&self) -> String {
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        let cores = self.cores.map(|cores| cores.to_string());
        format!(
            "machine: {}, cores: {}\ncommit: {}, date: {}\n",
            or_unknown(&self.cpu),
            or_unknown(&cores),
            or_unknown(&self.commit),
            or_unknown(&self.date),
        )
    }

    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "commit": self.commit,
            "date": self.date,
            "debug_assertions": cfg!(debug_assertions),
        })
    }
}

/// The first `model name` of Linux's /proc/cpuinfo; other architectures than x86 have none.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    })
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe"])
        // The whole hash, whatever tags there are.
        .args(["--always", "--exclude=*", "--abbrev=40", "--dirty"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let commit = text.trim();
    (output.status.success() && !commit.is_empty()).then(|| commit.to_owned())
}

/// Seconds since 1970 as date and time, in the Gregorian calendar.
fn utc(seconds: u64) -> String {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let days = seconds / 86_400;
    let mut year = 1970 + days / DAYS_OF_400_YEARS * 400;
    let mut day = days % DAYS_OF_400_YEARS;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let day = day + 1;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_234_567_890, "2009-02-13T23:31:30Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (12_622_780_800, "2370-01-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn the_processor_is_named_by_its_model() {
        let cpuinfo =
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpu_model("Processor : ARM\n"), None);
    }
}
