//! The forms for notices of infringement and other complaints: for everybody, without an account. What was typed stays typed
//! when something is wrong with it, and nothing is told of anybody's box.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{Fields, Said, Shell, page, page_with, status_of, visitor::Visitor};
use crate::{
    api::error::Problem,
    app::App,
    auth::{ClientAddress, RequestId},
    reports::{self, FieldName, NewReport, ReportError, ReportKind, Typed, Wrong},
};

/// A field, as the form shows it.
struct Input {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    /// What was typed.
    value: String,
    limit: usize,
    needed: bool,
    shape: Shape,
    autocomplete: &'static str,
    wrong: Option<String>,
}

/// What a field looks like.
#[derive(PartialEq, Eq)]
enum Shape {
    Line,
    Email,
    Lines,
    Statement,
}

impl Input {
    fn new(kind: ReportKind, field: FieldName, typed: &Typed, wrong: &[Wrong]) -> Self {
        let notice = kind == ReportKind::Copyright;
        let (label, hint) = match field {
            FieldName::Name => ("Your name", ""),
            FieldName::Email => ("E-mail address", "The reference goes there, and what we have to ask."),
            FieldName::Address => ("Postal address", ""),
            FieldName::Telephone => ("Telephone, if you like", ""),
            FieldName::RightsHolder => ("Who holds the rights", "Your own name, if it is you."),
            FieldName::Work => {
                ("The work", "Its title and author, or a list of several: what they are, and where they may be had.")
            }
            FieldName::Location if notice => (
                "Where it was seen",
                "One place a line: the address with its port or the URL, the info-hash, and the time with its zone.",
            ),
            FieldName::Location => (
                "Where it came from",
                "One place a line: the address with its port or the URL, and the time with its zone.",
            ),
            FieldName::Details if notice => ("Anything else", ""),
            FieldName::Details => ("What happened", "Lines of a log help."),
            FieldName::GoodFaith => (
                "I believe in good faith that the use of the work that I complain of is not authorised by the holder of the rights, \
                 their agent, or the law.",
                "",
            ),
            FieldName::Accurate if notice => (
                "What I say is accurate, and under penalty of perjury, I hold the rights that are infringed or am authorised to act \
                 for who does.",
                "",
            ),
            FieldName::Accurate => ("What I say is accurate, as far as I know.", ""),
            FieldName::Signature => ("Signature", "Type your name again, as above."),
        };
        Self {
            name: field.as_str(),
            label,
            hint,
            value: match field {
                FieldName::GoodFaith if typed.good_faith => "yes".to_owned(),
                FieldName::Accurate if typed.accurate => "yes".to_owned(),
                field => typed.text(field).to_owned(),
            },
            limit: field.limit(),
            needed: field.is_needed(kind),
            shape: match field {
                FieldName::Email => Shape::Email,
                FieldName::Address | FieldName::Work | FieldName::Location | FieldName::Details => Shape::Lines,
                FieldName::GoodFaith | FieldName::Accurate => Shape::Statement,
                _ => Shape::Line,
            },
            autocomplete: match field {
                FieldName::Name => "name",
                FieldName::Email => "email",
                FieldName::Address => "street-address",
                FieldName::Telephone => "tel",
                _ => "off",
            },
            wrong: wrong.iter().find(|wrong| wrong.field == field).map(|wrong| super::sentence(&wrong.why)),
        }
    }
}

#[derive(Template)]
#[template(path = "report.html")]
struct ReportPage {
    shell: Shell,
    said: Option<Said>,
    agent: Option<String>,
    notice: bool,
    kind: ReportKind,
    /// The parts of the form, each with its title.
    parts: Vec<(&'static str, Vec<Input>)>,
    form_id: Uuid,
}

fn report_page(app: &App, visitor: &Visitor, kind: ReportKind, typed: &Typed, wrong: &[Wrong]) -> ReportPage {
    use FieldName::{
        Accurate, Address, Details, Email, GoodFaith, Location, Name, RightsHolder, Signature, Telephone, Work,
    };
    let notice = kind == ReportKind::Copyright;
    let (title, section) = if notice { ("Notices of infringement", "dmca") } else { ("Report abuse", "abuse") };
    let parts: [(&str, &[FieldName]); 4] = [
        ("You", &[Name, Email, Address, Telephone, RightsHolder]),
        (if notice { "The work, and where it was seen" } else { "What it is about" }, &[Work, Location, Details]),
        (if notice { "Statements" } else { "Statement" }, &[GoodFaith, Accurate]),
        ("", &[Signature]),
    ];
    let parts = parts.into_iter().map(|(title, fields)| {
        let fields = fields.iter().filter(|field| field.is_asked(kind));
        (title, fields.map(|field| Input::new(kind, *field, typed, wrong)).collect::<Vec<_>>())
    });
    ReportPage {
        shell: Shell::new(app, visitor.0.as_ref(), title, section),
        said: None,
        agent: app.brand.dmca_agent.clone(),
        notice,
        kind,
        parts: parts.filter(|(_, fields)| !fields.is_empty()).collect(),
        form_id: Uuid::now_v7(),
    }
}

/// `GET /dmca`: who takes notices of infringement, what one has to say, and the form for it.
pub(super) async fn ask_notice(State(app): State<App>, visitor: Visitor) -> Result<Response, Problem> {
    page(&report_page(&app, &visitor, ReportKind::Copyright, &Typed::default(), &[]))
}

/// `GET /abuse`: the form for any other complaint.
pub(super) async fn ask_complaint(State(app): State<App>, visitor: Visitor) -> Result<Response, Problem> {
    page(&report_page(&app, &visitor, ReportKind::Attack, &Typed::default(), &[]))
}

/// A form that was sent. What is left out is said at its field, and not that the form did not arrive.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Sent {
    form_id: Uuid,
    kind: String,
    name: String,
    email: String,
    address: String,
    telephone: String,
    rights_holder: String,
    work: String,
    location: String,
    details: String,
    good_faith: String,
    accurate: String,
    signature: String,
}

impl Default for Sent {
    fn default() -> Self {
        let none = String::new;
        Self {
            form_id: Uuid::now_v7(),
            kind: none(),
            name: none(),
            email: none(),
            address: none(),
            telephone: none(),
            rights_holder: none(),
            work: none(),
            location: none(),
            details: none(),
            good_faith: none(),
            accurate: none(),
            signature: none(),
        }
    }
}

#[derive(Template)]
#[template(path = "report_taken.html")]
struct TakenPage {
    shell: Shell,
    reference: String,
    notice: bool,
}

/// `POST /dmca`
pub(super) async fn send_notice(
    State(app): State<App>,
    visitor: Visitor,
    from: ClientAddress,
    request_id: RequestId,
    Fields(sent): Fields<Sent>,
) -> Result<Response, Problem> {
    send(&app, &visitor, ReportKind::Copyright, from, request_id, sent).await
}

/// `POST /abuse`
pub(super) async fn send_complaint(
    State(app): State<App>,
    visitor: Visitor,
    from: ClientAddress,
    request_id: RequestId,
    Fields(sent): Fields<Sent>,
) -> Result<Response, Problem> {
    let kinds = ReportKind::ALL.iter().copied().filter(|kind| *kind != ReportKind::Copyright);
    let kind = kinds.into_iter().find(|kind| kind.as_str() == sent.kind).unwrap_or(ReportKind::Other);
    send(&app, &visitor, kind, from, request_id, sent).await
}

async fn send(
    app: &App,
    visitor: &Visitor,
    kind: ReportKind,
    from: ClientAddress,
    RequestId(request_id): RequestId,
    sent: Sent,
) -> Result<Response, Problem> {
    let form_id = sent.form_id;
    let typed = Typed {
        name: sent.name,
        email: sent.email,
        address: sent.address,
        telephone: sent.telephone,
        rights_holder: sent.rights_holder,
        work: sent.work,
        location: sent.location,
        details: sent.details,
        good_faith: !sent.good_faith.is_empty(),
        accurate: !sent.accurate.is_empty(),
        signature: sent.signature,
    };
    let typed = typed.tidied(kind);
    let new = NewReport { form_id, kind, typed: &typed, from: &from.0, request_id };
    match reports::file(&app.pool, new, app.now()).await {
        Ok(reference) => {
            let notice = kind == ReportKind::Copyright;
            let title = if notice { "Your notice is here" } else { "Your report is here" };
            let section = if notice { "dmca" } else { "abuse" };
            let shell = Shell::new(app, visitor.0.as_ref(), title, section);
            page(&TakenPage { shell, reference, notice })
        }
        Err(ReportError::Database(error)) => Err(error.into()),
        Err(error) => {
            let wrong = match &error {
                ReportError::Wrong(wrong) => wrong.clone(),
                _ => Vec::new(),
            };
            let problem = Problem::from(error);
            let said = Some(Said::refused(&problem));
            let shown = ReportPage { said, ..report_page(app, visitor, kind, &typed, &wrong) };
            let mut response = page_with(status_of(&problem), &shown)?;
            // When to come again is for programs, too.
            if let Some(after) = problem.into_response().headers_mut().remove(axum::http::header::RETRY_AFTER) {
                response.headers_mut().insert(axum::http::header::RETRY_AFTER, after);
            }
            Ok(response)
        }
    }
}
