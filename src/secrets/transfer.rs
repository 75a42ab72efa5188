//! Moves every secret from one store to another. Cut off at any point, nothing is lost: every value is in the other store
//! before the database leads there, and the database leads there before anything is destroyed. Run it again to go on.

use secrecy::ExposeSecret;
use sqlx::PgPool;

use super::{SecretPath, SecretStore};

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many secrets are in the other store now that were in the first.
    pub secrets: usize,
    /// How many references in the database lead to the other store now.
    pub references: u64,
}

/// Moves everything. No copy of the service may run meanwhile: it would write to the store it knows.
///
/// # Errors
/// What went wrong, and where both stores hold different values of a secret that the database does not decide between.
/// Everything can still be read where the database says it is.
pub async fn move_all(pool: &PgPool, from: &dyn SecretStore, to: &dyn SecretStore) -> anyhow::Result<Moved> {
    let paths = from.list("").await?;
    for path in &paths {
        copy(pool, from, to, path).await?;
    }
    let mut tx = pool.begin().await?;
    let (old, new) = (format!("{}:", from.name()), format!("{}:", to.name()));
    let resources = sqlx::query!(
        "update seedbox_resources set secret_ref = $2 || substr(secret_ref, length($1) + 1), version = version + 1
         where secret_ref like $1 || '%'",
        old,
        new,
    )
    .execute(&mut *tx)
    .await?;
    let connections = sqlx::query!(
        "update byos_connections set
             secret_ref = case when secret_ref like $1 || '%' then $2 || substr(secret_ref, length($1) + 1) else secret_ref end,
             next_secret_ref = case when next_secret_ref like $1 || '%' then $2 || substr(next_secret_ref, length($1) + 1)
                 else next_secret_ref end,
             version = version + 1
         where secret_ref like $1 || '%' or next_secret_ref like $1 || '%'",
        old,
        new,
    )
    .execute(&mut *tx)
    .await?;
    let second_factors = sqlx::query!(
        "update second_factors set secret_ref = $2 || substr(secret_ref, length($1) + 1) where secret_ref like $1 || '%'",
        old,
        new,
    )
    .execute(&mut *tx)
    .await?;
    let nodes = sqlx::query!(
        "update seedbox_nodes set secret_ref = $2 || substr(secret_ref, length($1) + 1) where secret_ref like $1 || '%'",
        old,
        new,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    for path in &paths {
        // Seen there once more before it is destroyed here.
        anyhow::ensure!(
            to.get(path).await?.is_some(),
            "{path} is not in the store {}; nothing more was destroyed",
            to.name()
        );
        from.delete(path).await?;
    }
    Ok(Moved {
        secrets: paths.len(),
        references: [resources, connections, second_factors, nodes].iter().map(|done| done.rows_affected()).sum(),
    })
}

async fn copy(pool: &PgPool, from: &dyn SecretStore, to: &dyn SecretStore, path: &SecretPath) -> anyhow::Result<()> {
    let Some(value) = from.get(path).await? else { return Ok(()) };
    let there = to.get_or_put(path, value.clone()).await?;
    if there.expose_secret() == value.expose_secret() {
        return Ok(());
    }
    // The database knows which of two is in use.
    let in_use = async |store: &dyn SecretStore| {
        sqlx::query_scalar!(
            r#"select (exists (select from seedbox_resources where secret_ref = $1)
                   or exists (select from byos_connections where secret_ref = $1 or next_secret_ref = $1)
                   or exists (select from second_factors where secret_ref = $1)
                   or exists (select from seedbox_nodes where secret_ref = $1)) as "used!""#,
            store.reference(path)
        )
        .fetch_one(pool)
        .await
    };
    if in_use(to).await? {
        return Ok(());
    }
    anyhow::ensure!(
        in_use(from).await?,
        "the stores {} and {} hold different values of {path}, and the database does not say which is in use. Nothing was \
         destroyed. If the service was started on {} by mistake, delete {path} there, then run this again",
        from.name(),
        to.name(),
        to.name()
    );
    to.put(path, value).await?;
    Ok(())
}
