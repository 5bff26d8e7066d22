//! Numbers and times for people.

use std::time::Duration;

use jiff::Timestamp;

/// 1536 is `1.5 KiB`.
pub fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"B");
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    if *unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") }
}

/// 12.34 is `12.3 ms`, 1234 is `1.2 s`.
pub fn milliseconds(value: f64) -> String {
    if value >= 1000.0 { format!("{:.1} s", value / 1000.0) } else { format!("{value:.1} ms") }
}

/// 3 h and 5 min are `3h05m`.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10 => format!("{:.1}s", value.as_secs_f64()),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// How long ago a moment was; nothing if its clock is ahead of this one.
pub fn age(moment: Timestamp) -> Duration {
    Timestamp::now().duration_since(moment).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_short() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1023.0), "1023 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes((5u64 << 30) as f64), "5.0 GiB");
        assert_eq!(bytes(2f64.powi(60)), "1048576.0 TiB");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let shown = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(shown(5), "5.0s");
        assert_eq!(shown(59), "59s");
        assert_eq!(shown(192), "3m12s");
        assert_eq!(shown(11_100), "3h05m");
        assert_eq!(shown(200_000), "2d07h");
    }
}
