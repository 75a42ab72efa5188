//! What everybody may see: the start, the plans, and what the law asks an operator to say.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{Shell, page, visitor::Visitor};
use crate::{
    api::error::Problem,
    app::App,
    brand::{self, Block},
    seedbox::{Plan, plans},
};

#[derive(Template)]
#[template(path = "start.html")]
struct StartPage {
    shell: Shell,
    plans: Vec<Plan>,
    api: bool,
}

/// `GET /`: what is sold here; whoever is signed in goes on to their boxes.
pub(super) async fn start(State(app): State<App>, Visitor(visitor): Visitor) -> Result<Response, Problem> {
    if visitor.is_some() {
        return Ok(Redirect::to("/seedbox").into_response());
    }
    let plans = plans::on_sale(&app.pool).await?;
    page(&StartPage { shell: Shell::new(&app, None, "Seedboxes, paid ahead", "start"), plans, api: true })
}

#[derive(Template)]
#[template(path = "plans.html")]
struct PlansPage {
    shell: Shell,
    plans: Vec<Plan>,
}

/// `GET /plans`
pub(super) async fn plans(State(app): State<App>, Visitor(visitor): Visitor) -> Result<Response, Problem> {
    let plans = plans::on_sale(&app.pool).await?;
    page(&PlansPage { shell: Shell::new(&app, visitor.as_ref(), "Plans", "plans"), plans })
}

#[derive(Template)]
#[template(path = "text.html")]
struct TextPage<'a> {
    shell: Shell,
    blocks: Vec<Block<'a>>,
    version: Option<String>,
    legal_entity: Option<String>,
}

/// `GET /terms`: the terms with the acceptable use, and which version they are.
pub(super) async fn terms(State(app): State<App>, Visitor(visitor): Visitor) -> Result<Response, Problem> {
    page(&TextPage {
        shell: Shell::new(&app, visitor.as_ref(), "Terms", "terms"),
        blocks: brand::blocks(app.brand.terms()),
        version: Some(app.brand.terms_version()),
        legal_entity: app.brand.legal_entity.clone(),
    })
}

/// `GET /privacy`
pub(super) async fn privacy(State(app): State<App>, Visitor(visitor): Visitor) -> Result<Response, Problem> {
    page(&TextPage {
        shell: Shell::new(&app, visitor.as_ref(), "Privacy", "privacy"),
        blocks: brand::blocks(app.brand.privacy()),
        version: None,
        legal_entity: app.brand.legal_entity.clone(),
    })
}
