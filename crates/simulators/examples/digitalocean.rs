//! The stand-in for DigitalOcean's API, for other programs to try: `digitalocean [--listen 127.0.0.1:4020]`. It lets in the token
//! `simulated`, takes a second of real time for what takes a minute there, and forgets everything when it ends.

#![allow(clippy::print_stdout, reason = "says where it is")]

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use seedplane_simulators::digitalocean::{Config, Lag, Simulator};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let listen = match &words[..] {
        [] => "127.0.0.1:4020",
        [flag, address] if flag == "--listen" => address,
        _ => {
            eprintln!("usage: digitalocean [--listen ADDRESS:PORT]");
            std::process::exit(2);
        }
    };
    let config = Config { lag: Lag::all(SignedDuration::from_millis(300)), limits: false, ..Config::new("simulated") };
    let simulator = Simulator::new(config, Arc::new(Timestamp::now));
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("ready: http://{}", listener.local_addr()?);
    axum::serve(listener, simulator.router()).await
}
