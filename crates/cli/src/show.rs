//! Numbers as people read them.

/// `1.50 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let mut x = n as f64 / 1024.0;
    let mut unit = 0;
    while x >= 1000.0 && unit + 1 < UNITS.len() {
        x /= 1024.0;
        unit += 1;
    }
    let digits = if x < 10.0 { 2 } else { 1 };
    format!("{x:.digits$} {}", UNITS[unit])
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 image`, `2,000 images`: the ending is that of the plural.
pub fn plural(n: u64, noun: &str, ending: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { ending })
}

/// `12.3 GFLOP`, and so on: three digits with the prefix of a thousand.
pub fn scaled(n: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut x = n;
    let mut prefix = 0;
    while x >= 1000.0 && prefix + 1 < PREFIXES.len() {
        x /= 1000.0;
        prefix += 1;
    }
    let digits = match x {
        _ if prefix == 0 => 0,
        x if x < 10.0 => 2,
        x if x < 100.0 => 1,
        _ => 0,
    };
    format!("{x:.digits$} {}{unit}", PREFIXES[prefix])
}

/// `0.013 s`, `1:05`, `2:03:04`, `12.5 days`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_owned();
    }
    if seconds < 60.0 {
        let digits = if seconds < 1.0 { 3 } else { 1 };
        return format!("{seconds:.digits$} s");
    }
    if seconds >= 48.0 * 3600.0 {
        return format!("{:.1} days", seconds / 86_400.0);
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    match hours {
        0 => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

/// Rows in columns: the first to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            match c {
                0 => line.extend([cell.as_str(), &pad]),
                _ => line.extend(["  ", &pad, cell.as_str()]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1 << 20), "1.00 MiB");
        assert_eq!(bytes(1_048_000), "1.00 MiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
        assert_eq!(scaled(58.72e6, "FLOP"), "58.7 MFLOP");
        assert_eq!(scaled(512.0, "FLOP"), "512 FLOP");
        assert_eq!(duration(0.0131), "0.013 s");
        assert_eq!(duration(65.2), "1:05");
        assert_eq!(duration(7384.0), "2:03:04");
        assert_eq!(duration(1_080_000.0), "12.5 days");
        assert_eq!(duration(f64::NAN), "?");
        assert_eq!(plural(1, "batch", "es"), "1 batch");
        assert_eq!(plural(2000, "batch", "es"), "2,000 batches");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10".into()], vec!["long".into(), "9".into()]];
        assert_eq!(table(&rows), "  a     10\n  long   9\n");
    }
}
