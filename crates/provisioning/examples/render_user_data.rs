//! Prints a node's user-data, to be looked at and tried: `render_user_data <ready URL> <token> <management key> <password>`.

#![allow(clippy::print_stdout, reason = "what it is for")]

use secrecy::SecretString;
use seedplane_provisioning::{
    Credentials,
    node::{
        access::Enrolment,
        user_data::{self, UserData},
    },
};
use uuid::Uuid;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, token, key, password] = &words[..] else {
        eprintln!("usage: render_user_data <ready URL> <token> <management key> <password>");
        std::process::exit(2);
    };
    let enrolment = Enrolment {
        ready_url: url.clone(),
        ready_token: SecretString::from(token.clone()),
        management_key: key.clone(),
        domain: None,
    };
    let credentials = Credentials { username: "seed".to_owned(), password: SecretString::from(password.clone()) };
    let rendered = user_data::render(&UserData {
        resource_id: Uuid::from_u128(0x0199_f000_0000_7000_8000_0000_0000_0001),
        enrolment: &enrolment,
        credentials: &credentials,
        max_connections: 500,
        torrent_port: 51_413,
    });
    match rendered {
        Ok(text) => print!("{text}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
