//! A torrent that a box seeds to another client.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use seedplane_provisioning::node::{
    qbittorrent::Session,
    torrent::{Tracker, make_torrent},
};
use tokio::process::Command;

/// How long the box may take to find its file, and the other client to fetch it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts a file into the box's folder for data as its owner's, has it seeded, fetches it with aria2 into `fetched` and compares.
/// How many bytes were fetched; `None` if aria2 is not on this machine, so that nobody fetched them.
///
/// # Errors
/// What went otherwise.
pub async fn seed(session: &Session, data: &Path, fetched: &Path) -> anyhow::Result<Option<u64>> {
    let content: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tracker = Tracker::start().await?;
    let torrent = make_torrent("proof.bin", &content, &tracker.announce_url());
    std::fs::write(data.join("proof.bin"), &content).context("the file cannot be put on the box")?;
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(data)?);
    let _ = std::os::unix::fs::chown(data.join("proof.bin"), Some(owner), Some(owner));
    session.add_torrent(&torrent, None).await?;
    let started = Instant::now();
    loop {
        let torrents = session.torrents().await?;
        if torrents.iter().any(|torrent| torrent.state.ends_with("UP") && torrent.state != "checkingUP") {
            break;
        }
        ensure!(started.elapsed() < PATIENCE, "the box does not seed: {torrents:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if Command::new("aria2c").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await.is_err() {
        return Ok(None);
    }
    std::fs::create_dir_all(fetched)?;
    std::fs::write(fetched.join("proof.torrent"), &torrent)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let status = Command::new("aria2c")
        .args(["--quiet", "--no-conf", "--seed-time=0", "--enable-dht=false", "--bt-enable-lpd=false"])
        .args(["--enable-peer-exchange=false", "--file-allocation=none", "--bt-stop-timeout=40"])
        .arg(format!("--listen-port={port}"))
        .arg("--dir")
        .arg(fetched)
        .arg(fetched.join("proof.torrent"))
        .status()
        .await?;
    ensure!(status.success(), "the other client did not fetch the file: {status}");
    ensure!(std::fs::read(fetched.join("proof.bin"))? == content, "what was fetched is not what was seeded");
    Ok(Some(content.len() as u64))
}
