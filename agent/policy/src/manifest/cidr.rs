//! Address ranges as the API server reads them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Longest text that can be a range: 45 characters of address, a slash, a prefix length with some
/// zeros before it.
const MAX_TEXT: usize = 64;

/// A range that could be read.
pub(super) struct Parsed {
    /// The range.
    pub(super) network: IpNet,
    /// True when the address had bits behind the prefix, which count for nothing.
    pub(super) had_host_bits: bool,
}

/// Reads `10.0.0.0/8`; the error says what is wrong with the text.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    if text.len() > MAX_TEXT {
        return Err(format!(
            "longer than {MAX_TEXT} characters, which no CIDR is"
        ));
    }
    let Some((address, prefix)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("prefix length missing, write {text}/32"),
            Ok(IpAddr::V6(_)) => format!("prefix length missing, write {text}/128"),
            Err(_) => "not a CIDR, write it like 10.0.0.0/8 or fd00::/8".to_owned(),
        });
    };
    // The standard library refuses leading zeros, whose meaning is not the same everywhere.
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!(
            "{address:?} is not an IP address (without leading zeros)"
        ));
    };
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err("IPv4-mapped, write it as IPv4".to_owned());
    }
    let bits = if address.is_ipv4() { 32 } else { 128 };
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "prefix length {prefix:?} is not a number from 0 to {bits}"
        ));
    }
    let network = prefix
        .parse::<u8>()
        .ok()
        .and_then(|prefix| IpNet::new(address, prefix).ok())
        .ok_or_else(|| format!("prefix longer than {bits}"))?;
    Ok(Parsed {
        network: network.trunc(),
        had_host_bits: network != network.trunc(),
    })
}
