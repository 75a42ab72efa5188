//! The command line: `seedplane --help`.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use seedplane::{
    accounts::Role,
    api::operator::{place_hold, suspend_check, terminate_check},
    audit::{
        chain::{self, Copy},
        events::Cause,
    },
    billing::reserves,
    byos::connections,
    clock::Time,
    commands::{self, DriftOptions, ProviderCommand, Who},
    config::{Flags, Settings},
    demo,
    ids::{AttemptId, ConnectionId, ResourceId},
    own_server,
    runtime::{self, Beside, Parts, Runtime, stop_signal},
    secrets::{SecretStore, keystore::Keystore, transfer, vault::Vault},
    seedbox::{Operation, Resource, SuspendReason, repository},
};
use seedplane_provisioning::node::gate;
use tracing_subscriber::EnvFilter;

/// Run a seedbox business, or try it: `seedplane up` needs no settings and touches nothing outside its data folder.
#[derive(Parser)]
#[command(
    name = "seedplane",
    version,
    about,
    after_help = "\
Try it:            seedplane up            then open the address it prints
See it all work:   seedplane demo
In production:     set DATABASE_URL, the COINPAYPORTAL_* and SMTP settings and SEEDPLANE_PRODUCTION=true, then
                   `seedplane migrate`, and any number of `seedplane serve` and `seedplane work`

Secrets (DATABASE_URL, COINPAYPORTAL_API_KEY, COINPAYPORTAL_BUSINESS_ID, COINPAYPORTAL_WEBHOOK_SECRET, SMTP_URL with
MAIL_FROM, VAULT_ADDR with VAULT_TOKEN or VAULT_ROLE_ID and VAULT_SECRET_ID) are taken from the environment or the settings file, never from flags: arguments can be read by everybody on
the machine."
)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything in one process: database, server, workers and, without settings, the trial's parts
    Up,
    /// Answer requests only; workers run elsewhere
    Serve,
    /// Carry out jobs only; any number of copies
    Work,
    /// Bring the database to this version's schema
    Migrate,
    /// Tell the whole story over the public API in a fresh folder, with proof at each step
    Demo(demo::Options),
    /// The audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The store of passwords and keys
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// What an operator does
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// For operators, on the service's own database: customers' own servers (for their owners: `own-server`)
    #[command(subcommand)]
    Byos(ByosCommand),
    /// Where boxes are made: what is offered there, and where torrents may be sold
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// What costs money for nothing, and what is lost: exits with 0 if nothing, with 1 if something, with 2 if that is not known
    Drift(DriftOptions),
    /// For owners, from any machine, with a token: connect your own server, use it, take it back
    OwnServer(own_server::Options),
}

#[derive(Subcommand)]
enum ByosCommand {
    /// List the connections that are not over, those with trouble first
    List,
    /// Print what the gate on a connected server runs, byte for byte
    Manifest,
    /// Print the script that the pasted line fetches, or its SHA-256
    Installer {
        /// Print the SHA-256 alone
        #[arg(long)]
        sha256: bool,
    },
    /// Take our key off a customer's server and destroy it
    Revoke {
        /// The connection's id
        connection: uuid::Uuid,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        operator: Who,
    },
}

#[derive(Subcommand)]
enum SecretsCommand {
    /// Move every secret to the other store; stop every copy of the service first, and start it with the other one after
    Move {
        /// Where to: vault (with the VAULT_* settings) or keystore (the data folder's; the VAULT_* settings say where from)
        #[arg(long, value_parser = ["vault", "keystore"])]
        to: String,
    },
    /// Make a new key for the keystore and wrap everything under it; the service may go on running meanwhile
    RotateKey,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Verify every chain and checkpoint; names the first row that was altered, or says why that cannot be known, and exits
    /// with 2
    Verify {
        /// The copy of the checkpoints outside the database; the data folder's if left out
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<std::path::PathBuf>,
    },
}

#[derive(Subcommand)]
enum OperatorCommand {
    /// Make an operator; the password is read from standard input
    Create {
        /// The operator's address
        email: String,
        /// Somebody who reads what operators read and changes nothing
        #[arg(long)]
        support: bool,
    },
    /// Take the second factor from somebody who lost their phone and their recovery codes; their sessions end, and the password
    /// alone opens the account until they set up another
    ResetSecondFactor {
        /// Whose: their address
        email: String,
        /// Why, and how you know that it is them
        #[arg(long)]
        reason: String,
        /// The address of the operator who does it; the same as EMAIL if left out
        #[arg(long, value_name = "EMAIL")]
        operator: Option<String>,
    },
    /// Stop suspension and wipe of a box for some days, whatever the workers want; charges go on
    Hold {
        /// The box's id
        resource: uuid::Uuid,
        /// For how many days, 3650 at most; 0 releases the hold
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(0..=3650))]
        days: u32,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        operator: Who,
    },
    /// Suspend a box; only an operator lifts it again
    Suspend {
        /// The box's id
        resource: uuid::Uuid,
        /// Cut everything, not only the service
        #[arg(long)]
        abuse: bool,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        operator: Who,
    },
    /// End a box and wipe its data for good
    Terminate {
        /// The box's id
        resource: uuid::Uuid,
        /// The box's label, typed again
        #[arg(long, value_name = "LABEL")]
        confirm: String,
        /// operator, fault (ours or the upstream's: the rest is refunded) or abuse
        #[arg(long, default_value = "operator")]
        end_reason: String,
        /// Why
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        operator: Who,
    },
}

fn main() -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("no other TLS provider was installed before");
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("seedplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(default: &str) {
    let filter = EnvFilter::try_from_env("SEEDPLANE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if std::env::var("SEEDPLANE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Demo(options) = cli.command {
        return demo::run(options, &cli.flags).await;
    }
    if let Command::OwnServer(options) = cli.command {
        return Ok(own_server::run(options).await);
    }
    start_logging("info,graphile_worker=warn,sqlx=warn");
    let settings = Settings::load(&cli.flags)?;
    match cli.command {
        Command::Up => run_parts(settings, Parts { serve: true, work: true }).await?,
        Command::Serve => run_parts(settings, Parts { serve: true, work: false }).await?,
        Command::Work => run_parts(settings, Parts { serve: false, work: true }).await?,
        Command::Migrate => {
            if let Some(url) = &settings.database_url {
                runtime::migrate(url.expose_secret()).await?;
            } else {
                Runtime::start(settings, Parts { serve: false, work: false }).await?.stop().await;
            }
            say("the database has this version's schema");
        }
        Command::Audit(AuditCommand::Verify { checkpoints }) => {
            let beside = Beside::find(&settings).await?;
            let copy = match &checkpoints {
                Some(file) => Copy::Named(file),
                None => Copy::Own(&beside.checkpoint_file),
            };
            let verification = chain::verify(&beside.pool, copy).await;
            beside.stop().await;
            let verification = verification?;
            say(&verification.to_string());
            if verification.fault.is_some() {
                return Ok(ExitCode::from(2));
            }
        }
        Command::Secrets(SecretsCommand::RotateKey) => {
            runtime::must_be_installed(&settings, "keystore")?;
            let rotation = Keystore::open(settings.data_dir.join("keystore"))?.rotate_key().await?;
            let how = if rotation.resumed { "an earlier rotation is finished" } else { "the keystore has a new key" };
            say(&format!(
                "{how}: {} data keys were wrapped under it. Back up keystore.key again, apart from the keystore; the old one opens nothing.",
                rotation.rewrapped
            ));
        }
        Command::Secrets(SecretsCommand::Move { to }) => say(&move_secrets(settings, &to).await?),
        Command::Operator(command) => {
            let beside = Beside::find(&settings).await?;
            let done = operate(&settings, &beside, command).await;
            beside.stop().await;
            say(&done?);
        }
        Command::Byos(ByosCommand::Manifest) => say(gate::MANIFEST.trim_end()),
        Command::Byos(ByosCommand::Installer { sha256: true }) => say(gate::install_sha256()),
        Command::Byos(ByosCommand::Installer { sha256: false }) => say(gate::install_script().trim_end()),
        Command::Byos(command) => {
            let beside = Beside::find(&settings).await?;
            let done = byos(&beside, command).await;
            beside.stop().await;
            say(&done?);
        }
        Command::Provider(command) => {
            let beside = Beside::find(&settings).await?;
            let done = commands::provider(&beside, command).await;
            beside.stop().await;
            say(&done?);
        }
        Command::Drift(options) => {
            let looked = async {
                let beside = Beside::find(&settings).await?;
                let done = commands::drift(&beside, &options).await;
                beside.stop().await;
                done
            };
            match looked.await {
                Ok((text, clean)) => {
                    say(&text);
                    return Ok(ExitCode::from(clean.map_or(2, |clean| u8::from(!clean))));
                }
                Err(error) => {
                    eprintln!("seedplane: {error:#}");
                    return Ok(ExitCode::from(2));
                }
            }
        }
        Command::Demo(_) | Command::OwnServer(_) => unreachable!("handled above"),
    }
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "a command answers on standard output")]
fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
}

async fn run_parts(settings: Settings, parts: Parts) -> anyhow::Result<()> {
    let runtime = Runtime::start(settings, parts).await?;
    let handle = runtime.stop_handle();
    tokio::spawn(async move {
        stop_signal().await;
        tracing::info!("stopping; boxes come back at the next start");
        handle.send_replace(true);
        // A second signal does not wait.
        stop_signal().await;
        std::process::exit(130);
    });
    if !parts.serve {
        say("working");
    }
    runtime.run(parts, |public_url| say(&format!("ready: {public_url}"))).await
}

/// Whether the terminal shows what is typed.
fn echo(shown: bool) {
    // Where there is no stty the password is shown, which is said of no system this runs on.
    let _ = std::process::Command::new("stty").arg(if shown { "echo" } else { "-echo" }).status();
}

/// Moves every secret between the keystore and Vault.
async fn move_secrets(settings: Settings, to: &str) -> anyhow::Result<String> {
    let vault = settings.vault.clone().context("moving secrets needs the VAULT_* settings; nothing was moved")?;
    if to == "vault" {
        runtime::must_be_installed(&settings, "keystore")?;
    }
    let beside = Beside::find(&settings).await?;
    let pool = &beside.pool;
    let moving = async {
        anyhow::ensure!(
            !runtime::others_run(pool).await?,
            "a copy of the service uses this database and would go on writing to the store it knows. Nothing was moved. Stop \
             every copy, then run this again"
        );
        let keystore = Keystore::open(settings.data_dir.join("keystore"))?;
        let vault = Vault::open(vault).await?;
        let (from, to): (&dyn SecretStore, &dyn SecretStore) =
            if to == "vault" { (&keystore, &vault) } else { (&vault, &keystore) };
        transfer::move_all(pool, from, to).await
    };
    let moved = moving.await;
    beside.stop().await;
    let moved = moved?;
    Ok(format!(
        "{} secrets are in {to} now, and {} references in the database lead there. Start the service {}",
        moved.secrets,
        moved.references,
        if to == "vault" { "with the VAULT_* settings" } else { "without the VAULT_* settings" }
    ))
}

async fn byos(app: &Beside, command: ByosCommand) -> anyhow::Result<String> {
    if let ByosCommand::Revoke { connection, reason, operator } = command {
        let cause = operator.cause(app, &reason).await?;
        let found = connections::find(&app.pool, ConnectionId(connection)).await?;
        let mut found =
            found.with_context(|| format!("there is no connection {connection}; `seedplane byos list` lists them"))?;
        let mut tx = app.pool.begin().await?;
        let asked = connections::request_revocation_in(&mut tx, &mut found, app.now(), &cause).await?;
        tx.commit().await?;
        let (label, host) = (found.label, found.host);
        return Ok(match asked {
            true => format!(
                "the revocation of {label} ({host}) is asked for; a worker takes our key off it and destroys it"
            ),
            false => format!("{label} ({host}) is revoked, or about to be, already"),
        });
    }
    let open = connections::open_of_everybody(&app.pool).await?;
    if open.is_empty() {
        return Ok("no server is connected".to_owned());
    }
    let lines = open.into_iter().map(|one| {
        let seen = one.last_seen_at.map_or_else(|| "never seen".to_owned(), |at| format!("seen {at}"));
        let trouble = one.last_error.map(|error| format!("\n    {error}")).unwrap_or_default();
        let differ = one.log_differences.filter(|count| *count > 0).map(|count| format!(", {count} log lines differ"));
        format!(
            "{}  {:<9} {} ({}:{}), {seen}{}{trouble}",
            one.id,
            one.status.as_str(),
            one.label,
            one.host,
            one.port,
            differ.unwrap_or_default()
        )
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

async fn operate(settings: &Settings, app: &Beside, command: OperatorCommand) -> anyhow::Result<String> {
    let problem = |problem: seedplane::api::error::Problem| anyhow::anyhow!(problem.detail);
    let box_of = async |id: uuid::Uuid| -> anyhow::Result<_> {
        repository::resource(&app.pool, ResourceId(id)).await?.with_context(|| format!("there is no box {id}"))
    };
    let ask =
        async |resource: &Resource, operation: Operation, reason: String, cause: &Cause| -> anyhow::Result<String> {
            let mut tx = app.pool.begin().await?;
            reserves::request_in(&mut tx, AttemptId::new(), resource, operation, &reason, app.now(), cause)
                .await
                .map_err(problem)?;
            tx.commit().await?;
            Ok(format!("{operation} of {} ({}) is asked for; a worker carries it out", resource.label, resource.id))
        };
    match command {
        OperatorCommand::Create { email, support } => {
            let mut password = String::new();
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
            if terminal {
                eprint!("Password (10 characters or more, not shown): ");
                echo(false);
            }
            let read = std::io::stdin().read_line(&mut password);
            if terminal {
                echo(true);
                eprintln!();
            }
            read.context("the password cannot be read from standard input")?;
            let password = SecretString::from(password.trim_end_matches(['\r', '\n']).to_owned());
            let role = if support { Role::Support } else { Role::Operator };
            let id = runtime::create_operator(&app.pool, app.now(), &email, password, role).await?;
            Ok(format!("{role} {id} ({email}) can sign in"))
        }
        OperatorCommand::ResetSecondFactor { email, reason, operator } => {
            let by = Who { email: operator.unwrap_or_else(|| email.clone()) };
            commands::reset_second_factor(settings, app, &email, &reason, &by).await
        }
        OperatorCommand::Hold { resource, days, reason, operator } => {
            let cause = operator.cause(app, &reason).await?;
            let resource = box_of(resource).await?;
            let until = (days > 0).then(|| Time(app.now().0 + Duration::from_secs(u64::from(days) * 86_400)));
            place_hold(&app.pool, app.now(), uuid::Uuid::now_v7(), resource.id, until, &cause)
                .await
                .map_err(problem)?;
            Ok(match until {
                Some(until) => format!("{} ({}) is held until {until}", resource.label, resource.id),
                None => format!("{} ({}) is no longer held", resource.label, resource.id),
            })
        }
        OperatorCommand::Suspend { resource, abuse, reason, operator } => {
            let cause = operator.cause(app, &reason).await?;
            let found = box_of(resource).await?;
            let why = if abuse { SuspendReason::Abuse } else { SuspendReason::Operator };
            suspend_check(&found, why).map_err(problem)?;
            ask(&found, Operation::Suspend, format!("{why}: {reason}"), &cause).await
        }
        OperatorCommand::Terminate { resource, confirm, end_reason, reason, operator } => {
            let cause = operator.cause(app, &reason).await?;
            let found = box_of(resource).await?;
            terminate_check(app.now(), &found, &confirm, &end_reason).map_err(problem)?;
            ask(&found, Operation::Terminate, format!("{end_reason}: {reason}"), &cause).await
        }
    }
}
