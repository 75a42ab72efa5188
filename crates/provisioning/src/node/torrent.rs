//! A torrent file and a tracker, just enough to prove that a box seeds to another client.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use sha1::{Digest, Sha1};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const PIECE: usize = 64 * 1024;

fn text(value: &[u8]) -> Vec<u8> {
    [value.len().to_string().as_bytes(), b":", value].concat()
}

/// A torrent file of one file, announced at `announce`.
pub fn make_torrent(name: &str, content: &[u8], announce: &str) -> Vec<u8> {
    let pieces: Vec<u8> = content.chunks(PIECE).flat_map(|piece| Sha1::digest(piece).to_vec()).collect();
    // Keys in order, as bencoding demands.
    [
        b"d".to_vec(),
        text(b"announce"),
        text(announce.as_bytes()),
        text(b"info"),
        b"d".to_vec(),
        text(b"length"),
        format!("i{}e", content.len()).into_bytes(),
        text(b"name"),
        text(name.as_bytes()),
        text(b"piece length"),
        format!("i{PIECE}e").into_bytes(),
        text(b"pieces"),
        text(&pieces),
        b"ee".to_vec(),
    ]
    .concat()
}

type Swarm = BTreeMap<Vec<u8>, BTreeSet<(Ipv4Addr, u16)>>;

/// An HTTP tracker on the loopback interface that tells everybody of everybody, until it is dropped.
#[derive(Debug)]
pub struct Tracker {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Tracker {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let swarms: Arc<Mutex<Swarm>> = Arc::default();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let swarms = Arc::clone(&swarms);
                tokio::spawn(async move {
                    let mut request = vec![0; 8192];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    let body = answer(&String::from_utf8_lossy(&request[..length]), &swarms);
                    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Where torrents announce themselves.
    pub fn announce_url(&self) -> String {
        format!("http://{}/announce", self.address)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Clients differ in which bytes of a hash they escape.
fn percent_decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let value = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    bytes
}

fn answer(request: &str, swarms: &Mutex<Swarm>) -> Vec<u8> {
    let query = request.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut peers = Vec::new();
    if let (Some(hash), Some(Ok(port))) = (field("info_hash"), field("port").map(str::parse::<u16>)) {
        let mut swarms = swarms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let swarm = swarms.entry(percent_decode(hash)).or_default();
        swarm.insert((Ipv4Addr::LOCALHOST, port));
        for (address, other) in swarm.iter().filter(|(_, other)| *other != port) {
            peers.extend(address.octets());
            peers.extend(other.to_be_bytes());
        }
    }
    [b"d8:intervali2e5:peers".to_vec(), text(&peers), b"e".to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_same_however_it_is_escaped() {
        assert_eq!(percent_decode("%41b%7Ec"), b"Ab~c");
        assert_eq!(percent_decode("Ab~c"), b"Ab~c");
        assert_eq!(percent_decode("%4"), b"%4");
    }

    #[test]
    fn a_torrent_is_bencoded() {
        let torrent = make_torrent("a", b"hello", "http://t/announce");
        let text = String::from_utf8_lossy(&torrent);
        assert!(
            text.starts_with(
                "d8:announce17:http://t/announce4:infod6:lengthi5e4:name1:a12:piece lengthi65536e6:pieces20:"
            ),
            "{text}"
        );
    }
}
