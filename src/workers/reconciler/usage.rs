//! Has the providers count what boxes use.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{
    app::App,
    usage::{self, Due},
    workers::StepError,
};

/// How many boxes are claimed, and looked at, at once.
const AT_ONCE: u8 = 8;

/// A round that has lasted so long leaves the rest to the next one.
const A_ROUND: Duration = Duration::from_secs(10);

/// A box that has not said for so long what it uses is left for the next time.
const PATIENCE: Duration = Duration::from_secs(45);

/// One round: every box that is due, some at a time.
///
/// # Errors
/// Those of the database. A box that does not answer is noted, and asked again when it is due again.
pub async fn count_usage(app: &App) -> Result<(), StepError> {
    let began = Instant::now();
    while began.elapsed() < A_ROUND {
        let due = usage::claim(&app.pool, app.now(), AT_ONCE.into()).await?;
        if due.is_empty() {
            break;
        }
        let mut looking = JoinSet::new();
        for one in due {
            let app = app.clone();
            looking.spawn(async move {
                if let Err(error) = look(&app, &one).await {
                    tracing::warn!(resource = %one.resource, %error, "what a box uses could not be written down");
                }
            });
        }
        while looking.join_next().await.is_some() {}
    }
    Ok(usage::forget(&app.pool, app.now()).await?)
}

async fn look(app: &App, due: &Due) -> sqlx::Result<()> {
    let Some(provider) = app.provider(&due.provider) else { return Ok(()) };
    let why = match tokio::time::timeout(PATIENCE, provider.usage(&due.resource_ref)).await {
        Ok(Ok(counted)) => {
            usage::record(&app.pool, due, &counted, app.now()).await?;
            return Ok(());
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} seconds", PATIENCE.as_secs()),
    };
    usage::note_failure(&app.pool, due, &why).await
}
