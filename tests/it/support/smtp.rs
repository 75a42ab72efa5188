//! A small SMTP server that takes mails, or does not, and reads what it took.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::PATIENCE;

/// A mail that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub to: Vec<String>,
    /// Its lines, as they came over the wire, with the dots of the protocol taken away.
    pub data: String,
}

#[derive(Default)]
struct State {
    busy: usize,
    refused: Option<String>,
    hangs: bool,
    offered: Vec<Vec<String>>,
    taken: Vec<Taken>,
}

/// The server; clones are the same one.
#[derive(Clone)]
pub struct Smtp {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Smtp {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { server.session(stream).await });
            }
        });
        server
    }

    /// Answers 451 to so many mails from now on.
    pub fn is_busy_for(&self, mails: usize) {
        self.state.lock().unwrap().busy = mails;
    }

    /// Answers 550 to every mail to this address.
    pub fn refuse(&self, to: &str) {
        self.state.lock().unwrap().refused = Some(to.to_owned());
    }

    /// Takes mails and never answers.
    pub fn hang(&self) {
        self.state.lock().unwrap().hangs = true;
    }

    /// How many mails it was offered, to this address if one is named.
    pub fn offered(&self, to: Option<&str>) -> usize {
        let is = |offer: &&Vec<String>| to.is_none_or(|to| offer.iter().any(|one| one == to));
        self.state.lock().unwrap().offered.iter().filter(is).count()
    }

    /// Waits until it was offered so many.
    pub async fn until_offered(&self, to: Option<&str>, count: usize) {
        let started = Instant::now();
        while self.offered(to) < count {
            assert!(started.elapsed() < PATIENCE, "{} of {count} mails were offered", self.offered(to));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it took.
    pub fn taken(&self) -> Vec<Taken> {
        self.state.lock().unwrap().taken.clone()
    }

    async fn session(self, stream: TcpStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut to = Vec::new();
        writer.write_all(b"220 localhost ESMTP\r\n").await?;
        while let Some(line) = lines.next_line().await? {
            let answer = match line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase().as_str() {
                "EHLO" => "250-localhost\r\n250 8BITMIME",
                "MAIL" | "RSET" => {
                    to.clear();
                    "250 OK"
                }
                "RCPT" => {
                    to.push(line.split(['<', '>']).nth(1).unwrap_or_default().to_owned());
                    "250 OK"
                }
                "DATA" => {
                    writer.write_all(b"354 go on\r\n").await?;
                    let mut data = String::new();
                    while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                        data.push_str(line.strip_prefix('.').unwrap_or(&line));
                        data.push('\n');
                    }
                    let Some(answer) = self.answer(Taken { to: to.clone(), data }) else {
                        std::future::pending().await
                    };
                    answer
                }
                "NOOP" => "250 OK",
                "QUIT" => return writer.write_all(b"221 bye\r\n").await,
                _ => "502 not here",
            };
            writer.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
        Ok(())
    }

    /// What it says to a mail; nothing if it hangs.
    fn answer(&self, mail: Taken) -> Option<&'static str> {
        let mut state = self.state.lock().unwrap();
        state.offered.push(mail.to.clone());
        if state.hangs {
            return None;
        }
        if state.refused.as_ref().is_some_and(|refused| mail.to.contains(refused)) {
            return Some("550 no such mailbox");
        }
        if state.busy > 0 {
            state.busy -= 1;
            return Some("451 come back later");
        }
        state.taken.push(mail);
        Some("250 taken")
    }
}

/// A mail or a part of one.
#[derive(Debug)]
pub struct Part {
    /// Names in lower case; long lines are one again.
    pub headers: Vec<(String, String)>,
    body: String,
}

impl Part {
    pub fn read(data: &str) -> Self {
        let (head, body) = data.split_once("\n\n").unwrap();
        let head = head.trim_start().replace("\n ", " ").replace("\n\t", " ");
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { headers: head.lines().map(header).collect(), body: body.to_owned() }
    }

    /// A header; it is there once.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(one, _)| one == name).map(|(_, value)| value.as_str());
        let value = values.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    /// The subject, decoded.
    pub fn subject(&self) -> String {
        let (mut subject, mut after_encoded) = (String::new(), true);
        for word in self.header("subject").split(' ') {
            let encoded = word.strip_prefix("=?utf-8?b?").and_then(|word| word.strip_suffix("?="));
            // Between two encoded words there is no space.
            if !(after_encoded && (encoded.is_some() || subject.is_empty())) {
                subject.push(' ');
            }
            match encoded {
                Some(encoded) => {
                    subject.push_str(&String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap());
                }
                None => subject.push_str(word),
            }
            after_encoded = encoded.is_some();
        }
        subject
    }

    /// Its parts, if it is made of such.
    pub fn parts(&self) -> Vec<Self> {
        let boundary = self.header("content-type").split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
        let (parts, _) = self.body.split_once(&format!("--{boundary}--")).expect("an end");
        parts.split(&format!("--{boundary}\n")).skip(1).map(Self::read).collect()
    }

    /// Its content, decoded.
    pub fn content(&self) -> String {
        let decoded = match self.header("content-transfer-encoding") {
            "base64" => BASE64_STANDARD.decode(self.body.replace('\n', "")).unwrap(),
            "quoted-printable" => {
                let mut bytes = Vec::new();
                let mut pieces = self.body.split('=');
                bytes.extend(pieces.next().unwrap_or_default().bytes());
                for piece in pieces {
                    let (code, rest) = match piece.strip_prefix('\n') {
                        Some(rest) => (None, rest),
                        None => (Some(u8::from_str_radix(&piece[..2], 16).unwrap()), &piece[2..]),
                    };
                    bytes.extend(code);
                    bytes.extend(rest.bytes());
                }
                bytes
            }
            "7bit" | "8bit" => self.body.clone().into_bytes(),
            other => panic!("an encoding of its own: {other}"),
        };
        String::from_utf8(decoded).unwrap()
    }
}
