//! Text of the page: escaping, and numbers as people read them.

/// Between a number and its unit, and between groups of digits: narrow, and no place to break.
pub(super) const THIN: char = '\u{202f}';

/// Text for HTML content and for quoted attributes. Control characters become their pictures, and
/// marks that turn the direction of what follows are replaced: samples hold any bytes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..'\u{20}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' => out.push('\u{fffd}'),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// A whole number, in groups of three digits.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        // Four digits stay together, as is usual.
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push(THIN);
        }
        out.push(d);
    }
    out
}

/// `significant` digits, without an exponent where that is readable; a dash where not finite.
pub(super) fn number(x: f64, significant: i32) -> String {
    if !x.is_finite() {
        return "–".to_owned();
    }
    if x == 0.0 {
        return "0".to_owned();
    }
    let exponent = x.abs().log10().floor() as i32;
    if (-4..7).contains(&exponent) {
        let digits = (significant - 1 - exponent).clamp(0, 12) as usize;
        return format!("{x:.digits$}").replacen('-', "−", 1);
    }
    let mantissa = x / 10f64.powi(exponent);
    let digits = (significant - 1).max(0) as usize;
    format!("{mantissa:.digits$}·10{}", superscript(exponent)).replacen('-', "−", 1)
}

/// Raised digits.
pub(super) fn superscript(exponent: i32) -> String {
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32(0x2070 + c as u32 - '0' as u32).unwrap_or(c),
    };
    exponent.to_string().chars().map(raised).collect()
}

/// Three digits and a unit of powers of 1024.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Three digits and a decimal prefix before `unit`.
pub(super) fn metric(x: f64, unit: &str) -> String {
    let prefixed = scaled(x, 1000.0, &["", "k", "M", "G", "T", "P", "E"]);
    format!("{prefixed}{unit}").trim_end().to_owned()
}

fn scaled(x: f64, base: f64, units: &[&str]) -> String {
    if !x.is_finite() {
        return "–".to_owned();
    }
    let mut unit = 0;
    let mut x = x;
    // 999.5 would be shown as 1000.
    while x >= base.min(999.5) && unit + 1 < units.len() {
        x /= base;
        unit += 1;
    }
    let shown = if unit == 0 && x.fract() == 0.0 { format!("{x}") } else { number(x, 3) };
    format!("{shown}{THIN}{}", units[unit])
}

/// A time span.
pub(super) fn duration(seconds: f64) -> String {
    let whole = if seconds.is_finite() { seconds.round() as u64 } else { 0 };
    match seconds {
        s if !s.is_finite() => "–".to_owned(),
        s if s <= 0.0 => format!("0{THIN}s"),
        s if s < 0.9995e-3 => format!("{}{THIN}µs", number(s * 1e6, 3)),
        s if s < 0.9995 => format!("{}{THIN}ms", number(s * 1e3, 3)),
        s if s < 59.95 => format!("{}{THIN}s", number(s, 3)),
        _ if whole < 3600 => format!("{}{THIN}min {:02}{THIN}s", whole / 60, whole % 60),
        _ => format!("{}{THIN}h {:02}{THIN}min", whole / 3600, whole / 60 % 60),
    }
}

/// The words as they are counted: `1 step`, `2 steps`.
pub(super) fn plural(n: u64, word: &str) -> String {
    format!("{}\u{a0}{word}{}", count(n), if n == 1 { "" } else { "s" })
}
