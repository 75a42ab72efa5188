//! What is said to people about how they prove who they are.

use serde_json::json;
use uuid::Uuid;

use super::date;
use crate::{
    clock::Time,
    ids::UserId,
    mailer::{Notice, RESET_LINK},
};

fn notice(user_id: UserId, kind: &'static str, at: Time, subject: &str, body: String) -> Notice<'static> {
    Notice {
        user_id,
        resource_id: None,
        kind,
        idempotency_key: format!("{kind}:{user_id}:{}", Uuid::now_v7()),
        facts: json!({ "at": at }),
        subject: subject.to_owned(),
        body,
    }
}

/// The account has another password.
pub fn password_changed(user_id: UserId, at: Time) -> Notice<'static> {
    let body = format!(
        "The password of your account was changed on {}. Every other session has ended; API tokens go on working.\n\n\
         If it was not you, somebody else has your password or reads your mail: change the password of your mailbox, ask for a \
         new password here with \"Forgot your password?\", and revoke every API token that you do not know.\n",
        date(at),
    );
    notice(user_id, "password_changed", at, "Your password was changed", body)
}

/// Somebody who says to be the owner forgot the password.
pub fn password_reset(user_id: UserId, request: Uuid, at: Time) -> Notice<'static> {
    let body = format!(
        "Somebody asked on {} for a new password for your account. If it was you, open this link within an hour of this mail, and \
         choose one; it works once:\n{RESET_LINK}\n\n\
         If it was not you, there is nothing to do: your password stays as it is, and the link is in this mail only.\n",
        date(at),
    );
    Notice {
        idempotency_key: format!("password_reset:{request}"),
        ..notice(user_id, "password_reset", at, "A new password for your account", body)
    }
}

/// Sign-in asks for a code from now on.
pub fn second_factor_on(user_id: UserId, at: Time) -> Notice<'static> {
    let body = format!(
        "Since {} your account asks for a code of an authenticator app at sign-in. Keep the recovery codes where you find them \
         without your phone.\n\n\
         If it was not you, somebody else is signed in to your account: write to us.\n",
        date(at),
    );
    notice(user_id, "second_factor_on", at, "Your second factor is on", body)
}

/// Sign-in asks for no code any more.
pub fn second_factor_off(user_id: UserId, at: Time) -> Notice<'static> {
    let body = format!(
        "Since {} your account asks for no code at sign-in any more: the password alone opens it. The recovery codes are void.\n\n\
         If it was neither you nor us at your request, change your password at once, and turn the second factor on again.\n",
        date(at),
    );
    notice(user_id, "second_factor_off", at, "Your second factor is off", body)
}

/// A recovery code took the place of a code.
pub fn recovery_code_used(user_id: UserId, at: Time, left: i64) -> Notice<'static> {
    let body = format!(
        "A recovery code of your account was used on {}. {left} are left; turn the second factor off and on again for new ones.\n\n\
         If it was not you, somebody else has your password and your recovery codes: change the password at once.\n",
        date(at),
    );
    notice(user_id, "recovery_code_used", at, "A recovery code was used", body)
}
