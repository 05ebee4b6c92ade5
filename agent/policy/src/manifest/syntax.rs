//! What the API server takes for a name, a label and a port name.

/// Longest name or UID; Kubernetes has none that is longer.
const MAX_IDENTITY: usize = 253;

/// What may stand for an object: a name, a namespace, a UID. References and the kernel's NAMES join
/// them with slashes and spaces, so what has one could pass for two.
///
/// # Errors
/// Why it may not, for people.
pub fn identity(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("empty");
    }
    if text.len() > MAX_IDENTITY {
        return Err("longer than 253 characters");
    }
    if text.contains(|c: char| c == '/' || c.is_whitespace() || is_obeyed(c)) {
        return Err("must have no '/', no space and no invisible character");
    }
    Ok(())
}

/// True for characters that move what a terminal shows, or hide it: control characters, and those
/// that turn the direction of writing or take no room.
pub(super) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// RFC 1123 label, as names of namespaces.
pub(super) fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        return Err("longer than 63 characters");
    }
    if is_framed(name, is_lower_alphanumeric, |c| c == '-') {
        Ok(())
    } else {
        Err("must be lower-case letters, digits and '-', and begin and end with a letter or digit")
    }
}

/// RFC 1123 subdomain, as names of policies and pods.
pub(super) fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > 253 {
        return Err("longer than 253 characters");
    }
    let is_valid = name
        .split('.')
        .all(|label| is_framed(label, is_lower_alphanumeric, |c| c == '-'));
    if is_valid {
        Ok(())
    } else {
        Err(
            "must be lower-case letters, digits, '-' and '.', each part beginning and ending with \
             a letter or digit",
        )
    }
}

/// Key of a label: a name, with a DNS subdomain and a slash before it or not.
pub(super) fn label_key(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix).or(Err(
                "what stands before the '/' of a label key must be a DNS name",
            ))?;
            name
        }
        None => key,
    };
    if name.is_empty() || name.len() > 63 {
        return Err("a label key needs a name of 1 to 63 characters");
    }
    is_label_word(name)
        .then_some(())
        .ok_or("a label key must be letters, digits, '-', '_' and '.', and begin and end with a letter or digit")
}

/// Value of a label: may be empty.
pub(super) fn label_value(value: &str) -> Result<(), &'static str> {
    if value.len() > 63 {
        return Err("a label value has at most 63 characters");
    }
    (value.is_empty() || is_label_word(value))
        .then_some(())
        .ok_or("a label value must be letters, digits, '-', '_' and '.', and begin and end with a letter or digit")
}

/// Name of a port (RFC 6335 §5.1).
pub(super) fn port_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 15 {
        return Err("a port name has 1 to 15 characters");
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a port name needs a letter; for a port number leave the quotes away");
    }
    let is_valid = is_framed(name, is_lower_alphanumeric, |c| c == '-')
        && !name.contains("--")
        && name.bytes().any(|byte| byte.is_ascii_lowercase());
    is_valid.then_some(()).ok_or(
        "a port name must be lower-case letters, digits and single '-', with a letter, and begin \
         and end with a letter or digit",
    )
}

/// Port number.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn is_label_word(word: &str) -> bool {
    is_framed(
        word,
        |c| c.is_ascii_alphanumeric(),
        |c| matches!(c, '-' | '_' | '.'),
    )
}

fn is_lower_alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// True when the ends are of one kind and everything between of either.
fn is_framed(word: &str, is_end: fn(char) -> bool, is_inner: fn(char) -> bool) -> bool {
    word.starts_with(is_end)
        && word.ends_with(is_end)
        && word.chars().all(|c| is_end(c) || is_inner(c))
}
