//! Where a connection may lead: a name or an address that somebody else typed in must not lead into our own network, to
//! this machine, or to a cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why there is no address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The name leads nowhere.
    #[error("the name {host} does not resolve: {why}. Check the spelling, or give the server's address")]
    NotFound {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// It leads where we do not go.
    #[error(
        "{host} leads to {address}, which is not a public address, and this installation connects to public ones only. \
         Give an address that can be reached from the internet, or ask the operator to allow private ones"
    )]
    NotPublic {
        /// The name.
        host: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// It is no name of a host.
    #[error("a host is a name such as seed.example.org or an address, without a scheme, a port or a user")]
    NotAHost,
}

/// Checks that a text is a host name or an address, and gives it in lower case without brackets or a last dot.
///
/// # Errors
/// [`AddressError::NotAHost`].
pub fn host(text: &str) -> Result<String, AddressError> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let name = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A last label of digits alone is somebody's way to write an address that would be read differently elsewhere.
    let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_hexadecimal = name.rsplit('.').next().is_some_and(|last| last.starts_with("0x"));
    if name.len() > 253 || !name.split('.').all(is_label) || is_number || is_hexadecimal {
        return Err(AddressError::NotAHost);
    }
    Ok(name)
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    // The special-purpose registry of IANA, RFC 6890.
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 in other clothes: mapped, and translated by NAT64 or 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, documentation, benchmarking and the rest of 2001::/23.
        [0x2001, second, ..] if second < 0x0200 || second == 0x0db8 => false,
        // Only 2000::/3 is given out to the internet.
        [first, ..] => (0x2000..0x4000).contains(&first) && first != 0x3fff,
    }
}

/// Whether an address is one of the internet's.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The addresses to connect to, looked up now: what is connected to is what was checked, whatever the name leads to a
/// moment later.
///
/// # Errors
/// [`AddressError`]. One address that is not public spoils all of a name, unless they are allowed.
pub async fn resolve(host: &str, port: u16, allow_private: bool) -> Result<Vec<SocketAddr>, AddressError> {
    let not_found = |why: String| AddressError::NotFound { host: host.to_owned(), why };
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(|error| not_found(error.to_string()))?.take(8).collect();
    if found.is_empty() {
        return Err(not_found("it has no address".to_owned()));
    }
    let inside = found.iter().map(SocketAddr::ip).find(|address| !is_public(*address));
    match inside {
        Some(address) if !allow_private => Err(AddressError::NotPublic { host: host.to_owned(), address }),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_internets_addresses_are_public() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("93.184.216.34", true),
            ("100.63.255.255", true),
            ("100.128.0.1", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("198.17.255.255", true),
            ("2606:4700:4700::1111", true),
            ("2a01:4f8::1", true),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::808:808", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.168.1.1", false),
            ("192.0.0.170", false),
            ("192.0.2.1", false),
            ("198.18.0.1", false),
            ("203.0.113.9", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::7f00:1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b:1::1", false),
            ("2002:7f00:1::", false),
            ("2002:a9fe:a9fe::", false),
            ("2001:0:7f00:1::", false),
            ("2001:db8::1", false),
            ("3fff::1", false),
            ("fd00:ec2::254", false),
            ("fc00::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("4000::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_and_nothing_that_is_read_two_ways() {
        for (text, expected) in [
            ("Seed.Example.org", Some("seed.example.org")),
            (" seed.example.org. ", Some("seed.example.org")),
            ("localhost", Some("localhost")),
            ("203.0.113.9", Some("203.0.113.9")),
            ("[2001:DB8::1]", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("my_box.example", Some("my_box.example")),
            ("", None),
            ("example.org:22", None),
            ("user@example.org", None),
            ("ssh://example.org", None),
            ("example..org", None),
            ("-example.org", None),
            ("2130706433", None),
            ("0x7f000001", None),
            ("0x7f.0.0.0x1", None),
            ("127.1", None),
            ("0177.0.0.1", None),
            ("a b", None),
            ("a\nb", None),
            ("exa\u{430}mple.org", None),
            ("fe80::1%eth0", None),
        ] {
            assert_eq!(host(text).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_unless_that_is_allowed() {
        let refusal = resolve("127.0.0.1", 22, false).await.unwrap_err();
        assert!(refusal.to_string().contains("127.0.0.1, which is not a public address"), "{refusal}");
        assert!(matches!(resolve("localhost", 22, false).await.unwrap_err(), AddressError::NotPublic { .. }));
        assert_eq!(resolve("127.0.0.1", 22, true).await.unwrap()[0].to_string(), "127.0.0.1:22");
    }
}
