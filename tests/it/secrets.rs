//! Where secrets are kept: Vault keeps the same promises as the keystore, and moving from one to the other loses nothing.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use seedplane::secrets::{
    Error, SecretPath, SecretStore, SecretVersion, contract,
    keystore::Keystore,
    transfer,
    vault::{Login, Settings, Vault},
};
use seedplane_simulators::vault::Vault as StandIn;
use serde_json::json;

use crate::support::{World, temporary};

async fn stand_in() -> (StandIn, String) {
    let server = StandIn::new("role", "secret", "root");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let routes = server.router();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (server, format!("http://{address}"))
}

fn settings(address: &str, login: Login) -> Settings {
    Settings { address: address.to_owned(), login, mount: "secret".to_owned(), namespace: None }
}

fn role(secret_id: &str) -> Login {
    Login::AppRole { role_id: SecretString::from("role"), secret_id: SecretString::from(secret_id) }
}

#[tokio::test]
async fn vault_keeps_the_promises_of_every_store() {
    let (server, address) = stand_in().await;
    let store = Vault::open(settings(&address, role("secret"))).await.unwrap();
    contract::all(&store).await;
    assert_eq!(server.logins(), 1, "one login is enough");
    // With an engine that keeps more versions than we do, and with somebody else's token.
    let (server, address) = stand_in().await;
    server.set_max_versions(50);
    let store = Vault::open(settings(&address, Login::Token(SecretString::from("root")))).await.unwrap();
    contract::all(&store).await;
}

#[tokio::test]
async fn vault_is_tried_again_where_that_is_safe_and_says_what_is_wrong_where_it_is_not() {
    let (server, address) = stand_in().await;
    let store = Vault::open(settings(&address, role("secret"))).await.unwrap();
    let path = SecretPath::new("resource/1/password").unwrap();
    store.put(&path, SecretString::from("one")).await.unwrap();
    let value = async || store.get(&path).await.map(|value| value.map(|value| value.expose_secret().to_owned()));

    server.end_tokens();
    assert_eq!(value().await.unwrap().as_deref(), Some("one"), "it logs in anew");
    assert_eq!(server.logins(), 2);
    server.be_busy(2);
    assert_eq!(value().await.unwrap().as_deref(), Some("one"), "busy is waited for");
    server.lose_answers(1);
    let other = SecretPath::new("resource/2/password").unwrap();
    let first = store.get_or_put(&other, SecretString::from("first")).await.unwrap();
    assert_eq!(first.expose_secret(), "first", "a write whose answer was lost is found again");

    server.set_sealed(true);
    let error = value().await.unwrap_err().to_string();
    assert!(error.contains("503") && error.contains("sealed"), "{error}");
    server.set_sealed(false);
    server.set_refuse_writes(true);
    let error = store.put(&path, SecretString::from("hush-4711")).await.unwrap_err().to_string();
    assert!(error.contains("permission denied") && !error.contains("hush-4711"), "{error}");
    assert_eq!(value().await.unwrap().as_deref(), Some("one"));

    server.set_lease(Duration::from_millis(1500));
    server.end_tokens();
    value().await.unwrap();
    let logins = server.logins();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    value().await.unwrap();
    assert_eq!(server.logins(), logins + 1, "a token is renewed before it ends");

    let wrong = Vault::open(settings(&address, role("not the secret"))).await.unwrap_err().to_string();
    assert!(wrong.contains("secret id is not accepted") && !wrong.contains("not the secret"), "{wrong}");
    let plain = Vault::open(settings("http://vault.example.org:8200", role("secret"))).await.unwrap_err().to_string();
    assert!(plain.contains("https://"), "{plain}");
    let gone = Vault::open(settings("http://127.0.0.1:1", role("secret"))).await.unwrap_err().to_string();
    assert!(gone.contains("cannot be reached"), "{gone}");
    assert!(!format!("{store:?}").contains("hvs."), "no token in Debug");
}

/// Fails from the `left`th call on.
#[derive(Debug)]
struct Failing<'a> {
    store: &'a dyn SecretStore,
    left: &'a AtomicI64,
}

impl Failing<'_> {
    fn call(&self) -> Result<(), Error> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            Ok(())
        } else {
            Err(Error::Unavailable("cut off".to_owned()))
        }
    }
}

#[async_trait]
impl SecretStore for Failing<'_> {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    async fn put(&self, path: &SecretPath, value: SecretString) -> Result<SecretVersion, Error> {
        self.call()?;
        self.store.put(path, value).await
    }

    async fn get_or_put(&self, path: &SecretPath, value: SecretString) -> Result<SecretString, Error> {
        self.call()?;
        self.store.get_or_put(path, value).await
    }

    async fn get(&self, path: &SecretPath) -> Result<Option<SecretString>, Error> {
        self.call()?;
        self.store.get(path).await
    }

    async fn get_version(&self, path: &SecretPath, version: SecretVersion) -> Result<Option<SecretString>, Error> {
        self.call()?;
        self.store.get_version(path, version).await
    }

    async fn delete(&self, path: &SecretPath) -> Result<(), Error> {
        self.call()?;
        self.store.delete(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, Error> {
        self.call()?;
        self.store.list(prefix).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_to_vault_and_back_loses_nothing_wherever_it_is_cut_off() {
    let test = World::new().await.start(true).await;
    let owner = test.customer().await;
    let id = test.active_box(&owner, 1500).await;
    for n in 0..3 {
        test.post(&owner, "/api/byos/connections", json!({ "host": format!("box-{n}.example") })).await;
    }
    test.idle().await;
    // As if the box were a machine elsewhere, whose node we log in to.
    let node_key = SecretPath::new(format!("resource/{id}/node-key")).unwrap();
    test.app.secrets.put(&node_key, SecretString::from("the private half")).await.unwrap();
    sqlx::query(
        "insert into seedbox_nodes (resource_id, attempt_id, management_key, secret_ref, token_sha256, token_expires_at, created_at)
         select resource_id, id, 'ssh-ed25519 AAAA', $2, sha256('token'), now(), now() from provision_attempts
         where resource_id = $1 and operation = 'create'",
    )
    .bind(uuid::Uuid::parse_str(&id).unwrap())
    .bind(test.app.secrets.reference(&node_key))
    .execute(&test.app.pool)
    .await
    .unwrap();
    let keystore = Keystore::open(temporary("move").join("keystore")).unwrap();
    for path in test.app.secrets.list("").await.unwrap() {
        let value = test.app.secrets.get(&path).await.unwrap().unwrap();
        keystore.put(&path, value).await.unwrap();
    }
    let pool = &test.app.pool;
    let (server, address) = stand_in().await;
    let vault = Vault::open(settings(&address, role("secret"))).await.unwrap();
    // Every column that leads to a secret, also those of tables that come later.
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
         where table_schema = 'public' and column_name like '%secret_ref' order by 1, 2",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(columns.len() >= 5, "{columns:?}");
    let references = async || -> Vec<String> {
        let mut found = Vec::new();
        for (table, column) in &columns {
            let query = format!("select {column} from {table} where {column} is not null order by 1");
            let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(pool).await.unwrap();
            found.extend::<Vec<String>>(rows);
        }
        found
    };
    assert_eq!(references().await.len(), 5, "a password, three keys of servers and one of a node");
    let readable = async || {
        for reference in references().await {
            let store: &dyn SecretStore = if reference.starts_with("vault:") { &vault } else { &keystore };
            assert!(store.get_reference(&reference).await.unwrap().is_some(), "{reference} leads nowhere");
        }
    };
    let count = keystore.list("").await.unwrap().len();
    assert!(count >= 4, "{count} secrets are there to be moved");
    for (from, to) in [(&keystore as &dyn SecretStore, &vault as &dyn SecretStore), (&vault, &keystore)] {
        let mut cuts = 0;
        loop {
            let left = AtomicI64::new(cuts);
            let (failing_from, failing_to) = (Failing { store: from, left: &left }, Failing { store: to, left: &left });
            let moved = transfer::move_all(pool, &failing_from, &failing_to).await;
            readable().await;
            if moved.is_ok() {
                break;
            }
            cuts += 1;
            assert!(cuts < 200, "it never ends");
        }
        assert!(cuts > 8, "it was cut off at {cuts} places");
        assert_eq!((from.list("").await.unwrap().len(), to.list("").await.unwrap().len()), (0, count));
        let store = format!("{}:", to.name());
        assert!(references().await.iter().all(|reference| reference.starts_with(&store)));
    }
    assert_eq!(server.secrets(), 0, "nothing is left behind in Vault");

    // Two values of one name that the database does not decide between are nobody's to throw away.
    let path = SecretPath::new("audit/signing-key").unwrap();
    vault.put(&path, SecretString::from("another")).await.unwrap();
    if keystore.get(&path).await.unwrap().is_none() {
        keystore.put(&path, SecretString::from("one")).await.unwrap();
    }
    let refusal = transfer::move_all(pool, &keystore, &vault).await.unwrap_err().to_string();
    assert!(refusal.contains("audit/signing-key") && refusal.contains("Nothing was destroyed"), "{refusal}");
    readable().await;
}

/// The command as an operator gives it: with the service stopped, and the service started with the other store after.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_moves_the_secrets_of_a_stopped_service_and_refuses_a_running_one() {
    use std::{
        io::BufRead as _,
        process::{Child, Command, Stdio},
    };

    let (server, address) = stand_in().await;
    let data = temporary("move-command").join("data");
    let with_vault = [("VAULT_ADDR", address.as_str()), ("VAULT_ROLE_ID", "role"), ("VAULT_SECRET_ID", "secret")];
    let seedplane = |settings: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedplane"));
        command
            .arg("--data-dir")
            .arg(&data)
            .env_remove("DATABASE_URL")
            .envs(settings.iter().copied())
            .stdin(Stdio::null());
        command
    };
    let up = |settings: &[(&str, &str)]| -> Child {
        let mut command = seedplane(settings);
        command.args(["up", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.starts_with("ready: ")), "it did not start");
        child
    };
    let stop = |mut child: Child| {
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        child.wait().unwrap();
    };
    let moved = |to: &str| {
        let output = seedplane(&with_vault).args(["secrets", "move", "--to", to]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };

    let running = up(&[]);
    let (done, said) = moved("vault");
    assert!(!done && said.contains("Stop every copy"), "{said}");
    assert_eq!(server.secrets(), 0, "nothing was moved");
    stop(running);
    let (done, said) = moved("vault");
    assert!(done && said.contains("Start the service with the VAULT_* settings"), "{said}");
    let there = server.secrets();
    assert!(there >= 2, "{there} secrets are in Vault: {said}");
    stop(up(&with_vault));
    let (done, said) = moved("keystore");
    assert!(done && said.contains("without the VAULT_* settings"), "{said}");
    assert_eq!(server.secrets(), 0, "nothing is left behind");
    stop(up(&[]));
}
