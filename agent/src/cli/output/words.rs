//! Numbers, ages and counts as people read them.

use std::fmt::Write as _;

/// `4118` as `4,118`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long ago, as kubectl says it: `3s`, `14m`, `9h`, `12d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Adds to a text in place.
pub(crate) fn append(text: &mut String, more: std::fmt::Arguments<'_>) {
    // A String takes everything, unless a Display of ours lies.
    if text.write_fmt(more).is_err() {
        tracing::debug!("a text could not be completed");
    }
}

/// `1 policy`, `2 policies`.
pub(crate) fn counted(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    let mut text = grouped(number);
    let noun = if number == 1 { one } else { many };
    append(&mut text, format_args!(" {noun}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ages_and_counts_read_well() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [3, 840, 33_000, 1_036_800].map(age),
            ["3s", "14m", "9h", "12d"]
        );
        assert_eq!(counted(1_usize, "policy", "policies"), "1 policy");
        assert_eq!(counted(0_u64, "policy", "policies"), "0 policies");
    }
}
