//! Keeps what customers' own servers have logged of us, and compares it with our record.

use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::{StepError, byos_connector::server};
use crate::{
    alerts,
    app::App,
    audit::events::Cause,
    byos::{
        commands,
        connections::{self, Connection},
    },
    clock::Time,
    ids::ConnectionId,
    mailer::{self, templates::byos as words},
    seedbox::lifecycle::TransitionError,
};

/// How often a log is written that somebody else's write keeps coming before; the next look fetches it again.
const LOG_TRIES: u32 = 3;

/// Keeps the server's own log and compares it with our record.
pub(super) async fn note_log(
    tx: &mut PgConnection,
    connection: &mut Connection,
    text: &str,
    sent: &[commands::Command],
    now: Time,
) -> Result<(), StepError> {
    let lines = commands::read_log(text, connection.id);
    let differences = commands::compare(&lines, sent, commands::goes_back_to(connection, now));
    connection.server_log = Some(text.to_owned());
    connection.server_log_at = Some(now);
    connection.log_differences = Some(i32::try_from(differences.len()).unwrap_or(i32::MAX));
    let Some(newest) = differences.last() else { return Ok(()) };
    let sentences: Vec<String> = differences.iter().map(commands::Difference::sentence).collect();
    let detail = format!("{} ({}): {}", connection.label, connection.host, sentences.join("; "));
    alerts::raise(&mut *tx, "byos_log_differs", &connection.id.to_string(), &detail, now).await?;
    // The same differences stay in the log for a while: they are told of once.
    let key = hex::encode(&Sha256::digest(newest.sentence().as_bytes())[..16]);
    if mailer::notify_in(tx, words::log_differs(server(connection), &sentences, &key), now).await? {
        let after = json!({ "differences": differences });
        connections::record_in(tx, connection, "connection.log_differs", after, now, &Cause::system()).await?;
    }
    Ok(())
}

/// Keeps a server's own log that its owner asked for, as a look every hour does.
pub(super) async fn keep_log(app: &App, id: ConnectionId, text: &str) -> Result<(), StepError> {
    for _ in 0..LOG_TRIES {
        let Some(mut connection) = connections::find(&app.pool, id).await? else { return Ok(()) };
        let (sent, now) = (commands::sent(&app.pool, id).await?, app.now());
        let mut tx = app.pool.begin().await?;
        note_log(&mut tx, &mut connection, text, &sent, now).await?;
        match connections::write_in(&mut tx, &mut connection).await {
            Ok(()) => {
                tx.commit().await?;
                return Ok(());
            }
            // A look wrote in between.
            Err(TransitionError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
