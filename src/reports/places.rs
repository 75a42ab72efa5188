//! Which places a text names, as people write them: addresses, URLs, ids of boxes.

use std::{collections::BTreeSet, net::IpAddr};

use uuid::Uuid;

/// How many places of a text are looked up.
const MAX_PLACES: usize = 50;

/// A place that a text names: the id of a box, or a host and maybe a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place {
    /// Of a box.
    pub(super) id: Option<Uuid>,
    /// In lower case; nothing where it is an id.
    pub(super) host: String,
    /// As it was said, or as the beginning of a URL has it.
    pub(super) port: Option<u16>,
}

/// The places that a text names, each once, at most 50. Names are not looked up: what they lead to today says nothing of then.
pub(super) fn places(text: &str) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    let separates = |c: char| c.is_whitespace() || ",;\"'<>()|".contains(c);
    for word in text.split(separates).filter(|word| !word.is_empty()) {
        // 32 digits without dashes are no id of ours: info-hashes look like that.
        let ids = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|part| part.len() == 36);
        for id in ids.filter_map(|part| Uuid::try_parse(part).ok()) {
            places.insert(Place { id: Some(id), ..Place::default() });
        }
        places.extend(place(word));
        if places.len() >= MAX_PLACES {
            break;
        }
    }
    places
}

/// The host and port of an address or URL.
pub(super) fn place(word: &str) -> Option<Place> {
    let word = word.trim_end_matches(['.', ':']).to_lowercase();
    let (port, rest) = match word.split_once("://") {
        Some(("http", rest)) => (Some(80), rest),
        Some(("https", rest)) => (Some(443), rest),
        Some((_, rest)) => (None, rest),
        None => (None, word.as_str()),
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Ok(ip) = authority.parse::<IpAddr>() {
        return Some(Place { host: ip.to_string(), port, id: None });
    }
    let (host, said) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match said {
        Some(said) => Some(said.parse().ok()?),
        None => port,
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(Place { host: ip.to_string(), port, id: None });
    }
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = host.len() <= 253 && host.contains('.') && host.split('.').all(label);
    let ends_in_letters = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.len() > 1 && last.bytes().any(|byte| byte.is_ascii_alphabetic()));
    (named && ends_in_letters).then(|| Place { host: host.to_owned(), port, id: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text, and the hosts and ports in it.
    type Case<'a> = (&'a str, &'a [(&'a str, Option<u16>)]);

    #[test]
    fn places_are_found_in_what_people_write() {
        let id = "0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee";
        let cases: &[Case<'_>] = &[
            ("203.0.113.7:51413, at 14:05 UTC", &[("203.0.113.7", Some(51413))]),
            ("203.0.113.7 port 51413.", &[("203.0.113.7", None)]),
            (
                "see https://Box.Example.ORG/x?y=1.2.3 <http://a.example:8080>",
                &[("a.example", Some(8080)), ("box.example.org", Some(443))],
            ),
            ("[2001:DB8::7]:51413 2001:db8::0008", &[("2001:db8::7", Some(51413)), ("2001:db8::8", None)]),
            ("ftp://user:secret@files.example/", &[("files.example", None)]),
            ("2aae6c35c94fcfb415dbe95f408b9ce91ee846ed", &[]),
            ("version 1.2.3, e.g. 10.5 % at 99999.example:99999 .. : :: a..b", &[]),
        ];
        for (text, expected) in cases {
            let found = places(text);
            let found: Vec<(&str, Option<u16>)> = found.iter().map(|one| (one.host.as_str(), one.port)).collect();
            assert_eq!(&found, expected, "{text}");
        }
        let named = places(&format!("http://x.example/boxes/{id}"));
        assert!(named.iter().any(|place| place.id.is_some_and(|found| found.to_string() == id)), "{named:?}");
        assert_eq!(places(&"a.example:1 b.example\n".repeat(500)).len(), 2);
        let many: String = (0..500).map(|n| format!("h{n}.example ")).collect();
        assert_eq!(places(&many).len(), MAX_PLACES);
    }
}
