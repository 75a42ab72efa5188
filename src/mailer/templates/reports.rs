//! What is said to people without an account who sent a report.

use super::date;
use crate::{clock::Time, reports::ReportKind};

/// A report came in: its subject and its text. Nothing of what was typed is in it, or anybody could have us mail their words to
/// anybody.
pub fn received(kind: ReportKind, reference: &str, at: Time) -> (String, String) {
    let what = if kind == ReportKind::Copyright { "notice of infringement" } else { "report" };
    let body = format!(
        "A {what} with your e-mail address came in on {}. Its reference is {reference}: name it when you write to us about it.\n\n\
         A person reads it. Where it is about a server of ours it is passed on to the customer who uses it, and the server can be \
         suspended. Who that customer is we do not tell without being obliged to.\n\n\
         If you did not send it, somebody else gave your address: tell us, with the reference, and it is set aside.\n",
        date(at),
    );
    (format!("Your {what} {reference}"), body)
}
