//! Through the front door, against the real Postgres of this machine. The cluster is made once and copied.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr as _,
    time::Duration,
};

use sqlx::{ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{process::recorded_pid, *};

/// Set for the copy of this test binary that is to be killed: the folder it starts Postgres in.
const VICTIM: &str = "SEEDPLANE_TEST_POSTGRES_VICTIM";

fn options(data_dir: &Path) -> EmbeddedOptions {
    EmbeddedOptions { data_dir: data_dir.to_owned(), binaries: None }
}

/// A folder with a cluster that has been started and stopped before.
async fn folder() -> TempDir {
    static MADE: OnceCell<PathBuf> = OnceCell::const_new();
    let made = MADE.get_or_init(|| async {
        // Kept until the test binary ends and a little longer: statics are not dropped.
        let folder = TempDir::with_prefix("seedplane-postgres-").unwrap().keep();
        let embedded = Embedded::start(options(&folder)).await.unwrap();
        assert_eq!(embedded.stop().await, State::Stopped);
        remove_at_exit(&folder);
        folder
    });
    let copy = TempDir::new().unwrap();
    let from = made.await.join("postgres");
    let status = Command::new("cp").arg("-a").arg(from).arg(copy.path()).status().unwrap();
    assert!(status.success());
    copy
}

/// A shell that outlives us by a moment and removes `folder`: it waits for the end of a pipe that we hold.
fn remove_at_exit(folder: &Path) {
    let script = "read _; rm -rf -- \"$1\"";
    let shell = Command::new("sh").args(["-c", script, "sh"]).arg(folder).stdin(Stdio::piped()).spawn().unwrap();
    std::mem::forget(shell);
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url).unwrap().connect().await.unwrap()
}

async fn text(connection: &mut PgConnection, query: &'static str) -> String {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

fn postmaster(data_dir: &Path) -> Option<u32> {
    recorded_pid(&data_dir.join("postgres/postmaster.pid"))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test]
async fn a_fresh_folder_gets_a_durable_private_and_quiet_database_that_survives_a_restart() {
    let parent = TempDir::new().unwrap();
    let data_dir = parent.path().join("a folder, with \"odd\" characters & 100%");
    let embedded = Embedded::start(options(&data_dir)).await.unwrap();
    let mut connection = connect(&embedded.url()).await;
    for (setting, value) in [
        ("select current_setting('fsync')", "on"),
        ("select current_setting('full_page_writes')", "on"),
        ("select current_setting('data_checksums')", "on"),
        ("select current_setting('listen_addresses')", ""),
        ("select current_setting('server_encoding')", "UTF8"),
        ("select current_database()::text", "seedplane"),
        ("select current_user::text", "seedplane"),
    ] {
        assert_eq!(text(&mut connection, setting).await, value, "{setting}");
    }
    assert_eq!(fs::metadata(data_dir.join("run")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(data_dir.join("postgres")).unwrap().mode() & 0o777, 0o700);
    assert!(!data_dir.join("postgres.initdb").exists());

    sqlx::raw_sql("create table kept (name text unique); insert into kept values ('hush-4711')")
        .execute(&mut connection)
        .await
        .unwrap();
    for failing in [
        "insert into kept values ('hush-4711')",
        "select 'hush-4711'::int",
        "do $$ begin raise warning 'hush-4711'; end $$",
    ] {
        let _the_answer_is_not_the_point = sqlx::raw_sql(failing).execute(&mut connection).await;
    }
    let by_parameter = sqlx::query("insert into kept values ($1)").bind("hush-4711").execute(&mut connection).await;
    assert!(by_parameter.is_err(), "the name is taken");
    let log = fs::read_to_string(data_dir.join("postgres.log")).unwrap();
    assert!(log.contains("ready to accept connections"), "{log}");
    assert!(!log.contains("hush-4711") && !log.contains("kept"), "{log}");

    assert_eq!(embedded.stop().await, State::Stopped);
    assert_eq!(postmaster(&data_dir), None);
    let embedded = Embedded::start(options(&data_dir)).await.unwrap();
    assert_eq!(text(&mut connect(&embedded.url()).await, "select name from kept").await, "hush-4711");
    embedded.stop().await;
}

#[tokio::test]
async fn a_second_instance_is_refused_and_told_who_holds_the_folder() {
    let folder = folder().await;
    // As closed as `mktemp -d` makes it: the folder itself is opened for whom Postgres runs as, and for nobody else.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let first = Embedded::start(options(folder.path())).await.unwrap();
    assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o707, 0o700);
    let running = postmaster(folder.path());
    let refusal = Embedded::start(options(folder.path())).await.unwrap_err();
    let message = refusal.to_string();
    assert!(matches!(refusal, Error::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{message}");
    assert!(message.contains(&folder.path().display().to_string()), "{message}");
    assert_eq!(postmaster(folder.path()), running, "the first is not disturbed");
    connect(&first.url()).await;
    first.stop().await;
    Embedded::start(options(folder.path())).await.expect("the folder is free again").stop().await;
}

#[tokio::test]
async fn a_killed_server_is_started_again_at_the_same_address() {
    let folder = folder().await;
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    sqlx::raw_sql("create table kept as select 42 as answer")
        .execute(&mut connect(&embedded.url()).await)
        .await
        .unwrap();
    let first = postmaster(folder.path()).unwrap();
    let mut state = embedded.state();
    assert_eq!(*state.borrow_and_update(), State::Serving);
    process::send(first, process::Signal::Kill);
    state.wait_for(|state| *state == State::Restarting).await.unwrap();
    state.wait_for(|state| *state == State::Serving).await.unwrap();
    assert_ne!(postmaster(folder.path()), Some(first));
    assert_eq!(text(&mut connect(&embedded.url()).await, "select answer::text from kept").await, "42");
    assert_eq!(embedded.stop().await, State::Stopped);
}

#[tokio::test]
async fn after_our_own_kill_nothing_stays_behind_and_the_next_start_has_the_data() {
    let folder = folder().await;
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(concat!(module_path!(), "::is_killed").split_once("::").unwrap().1)
        .env(VICTIM, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the victim has committed its row", || folder.path().join("committed").exists()).await;
    assert!(postmaster(folder.path()).is_some());
    victim.kill().unwrap();
    victim.wait().unwrap();
    // At once: the old server may still be shutting down.
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    assert_eq!(text(&mut connect(&embedded.url()).await, "select answer::text from kept").await, "42");
    embedded.stop().await;
}

#[tokio::test]
#[ignore = "only run as the victim of another test"]
async fn is_killed() {
    let Some(data_dir) = env::var_os(VICTIM).map(PathBuf::from) else { return };
    let embedded = Embedded::start(options(&data_dir)).await.unwrap();
    sqlx::raw_sql("create table kept as select 42 as answer")
        .execute(&mut connect(&embedded.url()).await)
        .await
        .unwrap();
    fs::write(data_dir.join("committed"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_that_somebody_left_running_is_stopped_first() {
    let folder = folder().await;
    let cluster = folder.path().join("postgres");
    let user = process::ServiceUser::choose(&cluster).unwrap();
    let binaries = binaries::find(None, &cluster).unwrap();
    let mut orphan = user
        .command(binaries.directory.join("postgres"))
        .arg("-D")
        .arg(&cluster)
        .args(["-c", "listen_addresses=", "-c", "unix_socket_directories=."])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the orphan runs", || {
        fs::read_to_string(cluster.join("postmaster.pid")).is_ok_and(|text| text.contains("ready"))
    })
    .await;
    // Somebody has to collect the orphan; init does it for a real one.
    let reaper = std::thread::spawn(move || orphan.wait());
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    assert!(reaper.join().unwrap().unwrap().success(), "the orphan was shut down, not killed");
    connect(&embedded.url()).await;
    embedded.stop().await;
}

#[tokio::test]
async fn a_pid_file_whose_process_is_an_unrelated_one_does_not_keep_it_from_starting() {
    let folder = folder().await;
    let stale = format!("{}\n{}\n1700000000\n5432\n\n\n 0 0\nready   \n", std::process::id(), folder.path().display());
    fs::write(folder.path().join("postgres/postmaster.pid"), stale).unwrap();
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    connect(&embedded.url()).await;
    embedded.stop().await;
}

#[tokio::test]
async fn a_folder_with_a_long_name_gets_a_socket_with_a_short_one() {
    let folder = folder().await;
    let long = folder.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    fs::rename(folder.path().join("postgres"), long.join("postgres")).unwrap();
    let embedded = Embedded::start(options(&long)).await.unwrap();
    let sockets = text(&mut connect(&embedded.url()).await, "select current_setting('unix_socket_directories')").await;
    let sockets = PathBuf::from(sockets.trim_matches('"'));
    assert!(!sockets.starts_with(&long));
    assert_eq!(fs::metadata(&sockets).unwrap().mode() & 0o777, 0o700);
    embedded.stop().await;
    assert!(!sockets.exists(), "nothing is left outside the folder");
}

#[tokio::test]
async fn a_half_made_cluster_is_made_anew() {
    let folder = TempDir::new().unwrap();
    let half = folder.path().join("postgres.initdb");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    connect(&embedded.url()).await;
    embedded.stop().await;
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_left_alone() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/PG_VERSION"), "9\n").unwrap();
    let error = Embedded::start(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, Error::MajorVersion { cluster: 9, .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path().join("postgres")).unwrap().count(), 1);
}

#[tokio::test]
async fn binaries_that_were_named_are_not_replaced_by_others() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let options = EmbeddedOptions { data_dir: folder.path().join("data"), binaries: Some(empty.clone()) };
    let message = Embedded::start(options).await.unwrap_err().to_string();
    assert!(message.contains(&empty.display().to_string()) && message.contains("no postgres"), "{message}");
}

#[tokio::test]
async fn a_folder_that_the_service_user_cannot_reach_is_named() {
    if process::effective_user() != 0 {
        return; // Only root changes its user, so nobody else can meet this.
    }
    let closed = TempDir::new().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Embedded::start(options(&closed.path().join("data"))).await.unwrap_err();
    assert!(matches!(&error, Error::NotReachable { blocked, .. } if blocked == closed.path()), "{error}");
}

#[tokio::test]
async fn an_abandoned_start_leaves_nothing_running() {
    let folder = folder().await;
    let abandoned = tokio::time::timeout(Duration::from_millis(1), Embedded::start(options(folder.path()))).await;
    assert!(abandoned.is_err());
    // The folder becomes free, which it is only when the server has gone: within the patience of a stop.
    let deadline = std::time::Instant::now() + Duration::from_secs(80);
    let started = loop {
        match Embedded::start(options(folder.path())).await {
            Err(Error::InUse { .. }) if std::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => break other,
        }
    };
    let log = fs::read_to_string(folder.path().join("postgres.log")).unwrap_or_default();
    started.unwrap_or_else(|error| panic!("{error}\n{log}")).stop().await;
}

#[tokio::test]
async fn a_database_made_from_a_template_has_its_tables() {
    let folder = folder().await;
    let embedded = Embedded::start(options(folder.path())).await.unwrap();
    let template = create_database_from_template(&embedded.url(), "seedplane_template", "template1").await.unwrap();
    let mut connection = connect(&template).await;
    sqlx::raw_sql("create table kept as select 42 as answer").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    for name in ["t_1", "odd \"name\"; drop database seedplane/?#"] {
        let url = create_database_from_template(&embedded.url(), name, "seedplane_template").await.unwrap();
        let mut connection = connect(&url).await;
        assert_eq!(text(&mut connection, "select current_database()::text").await, name);
        assert_eq!(text(&mut connection, "select answer::text from kept").await, "42");
    }
    let error = create_database_from_template(&embedded.url(), "t_1", "seedplane_template").await.unwrap_err();
    assert!(error.to_string().contains("t_1"), "{error}");
    embedded.stop().await;
}

#[test]
fn the_database_in_a_url_is_replaced_and_the_rest_kept() {
    let socket = "postgres://seedplane@localhost/seedplane?host=/run/x&port=5432";
    assert_eq!(with_database(socket, "t_1"), "postgres://seedplane@localhost/t_1?host=/run/x&port=5432");
    assert_eq!(with_database("postgres://u:p@h:5433", "t_1"), "postgres://u:p@h:5433/t_1");
}
