//! The routes, and what happens to a request on its way.

use std::collections::HashMap;

use axum::{
    Router,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, Method, Uri, header},
    response::Response,
};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use serde_json::{Value, json};

use super::{
    BURST, Exchange, HOURLY, Inner, Simulator,
    answer::{Answer, page},
    droplets::{self, Action, Droplet, Effect, IMAGES, Kept, REGIONS, SIZES, seconds},
    faults::{Fault, OF_REQUESTS},
    node::Node,
};

/// The most bytes of user-data.
const USER_DATA: usize = 64 * 1024;

pub(super) fn router(simulator: Simulator) -> Router {
    Router::new().fallback(answer).with_state(simulator)
}

/// A request, as far as the routes need it.
struct Request<'a> {
    method: &'a str,
    path: Vec<&'a str>,
    query: &'a HashMap<String, String>,
    body: Value,
    base: String,
}

async fn answer(
    State(simulator): State<Simulator>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let now = simulator.now();
    let sent: Option<Value> = serde_json::from_slice(&body).ok();
    let base = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    let request = Request {
        method: method.as_str(),
        path: uri.path().trim_matches('/').split('/').collect(),
        query: &query,
        body: sent.clone().unwrap_or(Value::Null),
        base: format!("http://{base}"),
    };
    let (fault, answer, limits) = {
        let mut inner = simulator.inner();
        inner.settle(now);
        let fault = match inner.scripted.pop_front() {
            Some(fault) => fault,
            None if inner.chance(simulator.config().faults.request) => {
                OF_REQUESTS[inner.random.random_range(0..OF_REQUESTS.len())]
            }
            None => Fault::None,
        };
        let (refused, limits) = inner.count(now, simulator.config().limits);
        let answer = match fault {
            Fault::BadGateway => return page(502, "502 Bad Gateway"),
            _ if refused.is_some() => refused.expect("just looked"),
            Fault::ServerError => Answer::error(500, "Unexpected server-side error"),
            Fault::Burst => Answer { retry_after: Some(7), ..Answer::error(429, "API rate limit exceeded.") },
            Fault::Hourly => Answer::error(429, "API rate limit exceeded."),
            _ => {
                let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                if token != Some(&format!("Bearer {}", simulator.config().token)) {
                    Answer::error(401, "Unable to authenticate you.")
                } else if inner.read_only && request.method != "GET" {
                    Answer::error(403, "You do not have access for the attempted action.")
                } else if !body.is_empty() && sent.is_none() {
                    match request.path[..] {
                        ["v2", "tags"] => bad_tag(),
                        _ => Answer::error(400, "The request body is not JSON."),
                    }
                } else {
                    if fault == Fault::Doubled {
                        simulator.carry_out(&mut inner, &request, now);
                    }
                    simulator.carry_out(&mut inner, &request, now)
                }
            }
        };
        let limits = if fault == Fault::Hourly { [limits[0], 0, now.as_second() + 11] } else { limits };
        (fault, answer, limits)
    };
    if method != Method::GET
        && let Err(error) = simulator.save()
    {
        tracing::error!(%error, "what was done is not on the disk: it is forgotten with this process");
    }
    let by_api = fault != Fault::GatewayTimeout;
    if let Some(observer) = &*simulator.shared.observer.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
        observer(&Exchange {
            method: method.to_string(),
            path: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            request: sent,
            status: answer.status,
            answer: answer.body.clone(),
            by_api,
        });
    }
    match fault {
        Fault::GatewayTimeout => page(504, "504 Gateway Time-out"),
        fault => answer.respond(limits, fault == Fault::Lost),
    }
}

impl Inner {
    /// Lets happen what was to happen by now.
    fn settle(&mut self, now: Timestamp) {
        for action in self.actions.values_mut().filter(|action| now >= action.ends_at) {
            let Some(effect) = action.effect.take() else { continue };
            let Some(droplet) = self.droplets.get_mut(&action.droplet) else { continue };
            if action.fails {
                continue;
            }
            match effect {
                Effect::Nothing => {}
                Effect::Power(power) => droplet.power = power,
                Effect::Size(size) => droplet.size = size,
            }
        }
    }

    /// Counts a request; the refusal if there were too many, and what the headers say of the hour.
    fn count(&mut self, now: Timestamp, limits: bool) -> (Option<Answer>, [i64; 3]) {
        let hour = now - SignedDuration::from_hours(1);
        while self.requests.front().is_some_and(|at| *at <= hour) {
            self.requests.pop_front();
        }
        let minute = now - SignedDuration::from_mins(1);
        let burst = self.requests.iter().rev().take_while(|at| **at > minute).count();
        let reset = self.requests.front().unwrap_or(&now).as_second() + 3600;
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let left = HOURLY.saturating_sub(self.requests.len() + 1);
        let headers = [number(HOURLY), number(left), reset];
        let refusal = || Answer::error(429, "API rate limit exceeded.");
        if limits && self.requests.len() >= HOURLY {
            return (Some(refusal()), [number(HOURLY), 0, reset]);
        }
        if limits && burst >= BURST {
            return (Some(Answer { retry_after: Some(30), ..refusal() }), [number(HOURLY), 0, reset]);
        }
        self.requests.push_back(now);
        (None, headers)
    }
}

impl Simulator {
    fn carry_out(&self, inner: &mut Inner, request: &Request<'_>, now: Timestamp) -> Answer {
        let number = |text: &str| text.parse::<u64>().ok();
        match (request.method, &request.path[..]) {
            ("GET", ["v2", "account"]) => Answer::new(200, account(inner, self.config().droplet_limit)),
            ("GET", ["v2", "sizes"]) => paged(request, "sizes", SIZES.iter().map(droplets::Size::json).collect()),
            ("GET", ["v2", "regions"]) => {
                paged(request, "regions", REGIONS.iter().map(|(slug, _)| droplets::region(slug)).collect())
            }
            ("POST", ["v2", "droplets"]) => self.create(inner, request, now),
            ("GET", ["v2", "droplets"]) => list(inner, request, now),
            ("DELETE", ["v2", "droplets"]) => match request.query.get("tag_name").filter(|tag| !tag.is_empty()) {
                Some(tag) => {
                    let lag = inner.within(self.config().lag.gone);
                    for droplet in inner.droplets.values_mut().filter(|droplet| droplet.tags.contains(tag)) {
                        droplet.destroy(now, lag);
                    }
                    Answer::empty(204)
                }
                None => Answer::error(422, "tag_name is required."),
            },
            (method, ["v2", "droplets", id, rest @ ..]) => {
                let seen = |inner: &Inner, id: &u64| inner.droplets.get(id).is_some_and(|one| one.is_seen(now));
                match number(id) {
                    // The state of a destruction outlives its droplet.
                    Some(id) if *rest == ["destroy_with_associated_resources", "status"] && method == "GET" => {
                        destroy_status(inner, id, now)
                    }
                    Some(id) if seen(inner, &id) => self.one(inner, request, method, id, rest, now),
                    _ => Answer::not_found(),
                }
            }
            ("GET", ["v2", "actions", id]) => match number(id).and_then(|id| inner.actions.get(&id)) {
                Some(action) if now >= action.visible_at => Answer::new(200, json!({ "action": action.json(now) })),
                _ => Answer::not_found(),
            },
            ("POST", ["v2", "tags"]) => match request.body["name"].as_str() {
                Some(name) if is_tag(name) => {
                    inner.tags.insert(name.to_owned());
                    Answer::new(201, json!({ "tag": { "name": name, "resources": tagged_counts() } }))
                }
                _ => bad_tag(),
            },
            (method @ ("POST" | "DELETE"), ["v2", "tags", tag, "resources"]) => {
                if !inner.tags.contains(*tag) {
                    return Answer::not_found();
                }
                for resource in request.body["resources"].as_array().into_iter().flatten() {
                    let id = resource["resource_id"].as_str().and_then(number);
                    let Some(droplet) = id.and_then(|id| inner.droplets.get_mut(&id)) else { continue };
                    droplet.tags.retain(|one| one != tag);
                    if method == "POST" {
                        droplet.tags.push((*tag).to_owned());
                    }
                }
                Answer::empty(204)
            }
            ("GET", ["v2", "volumes"]) => paged(request, "volumes", inner.volumes.values().map(Kept::volume).collect()),
            ("GET", ["v2", "volumes", id]) => match inner.volumes.get(*id) {
                Some(volume) => Answer::new(200, json!({ "volume": volume.volume() })),
                None => Answer::not_found(),
            },
            ("GET", ["v2", "snapshots"]) => {
                paged(request, "snapshots", inner.snapshots.values().map(Kept::snapshot).collect())
            }
            ("GET", ["v2", "snapshots", id]) => match inner.snapshots.get(*id) {
                Some(snapshot) => Answer::new(200, json!({ "snapshot": snapshot.snapshot() })),
                None => Answer::not_found(),
            },
            _ => Answer::not_found(),
        }
    }

    fn create(&self, inner: &mut Inner, request: &Request<'_>, now: Timestamp) -> Answer {
        let body = &request.body;
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let wrong = |message: &str| Answer::error(422, message);
        let (name, image) = (text("name"), text("image"));
        if !is_name(&name) {
            return wrong("Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)");
        }
        let Some(size) = droplets::size(&text("size")) else {
            return wrong("You specified an invalid size for Droplet creation.");
        };
        if !IMAGES.iter().any(|(slug, ..)| *slug == image) {
            return wrong("You specified an invalid image for Droplet creation.");
        }
        let asked = text("region");
        let region = REGIONS.iter().find(|(slug, _)| slug.starts_with(&asked) && size.regions.contains(slug));
        let Some((region, _)) = region.filter(|_| size.available) else {
            return wrong("Size is not available in this region.");
        };
        let tags: Vec<String> =
            body["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
        if !tags.iter().all(|tag| is_tag(tag)) {
            return wrong("Tags may contain letters, numbers, colons, dashes, and underscores.");
        }
        let user_data = text("user_data");
        if user_data.len() > USER_DATA {
            return wrong("User data is too long.");
        }
        if inner.droplets.values().filter(|droplet| droplet.costs_at(now)).count() >= self.config().droplet_limit {
            return wrong("creating this/these droplet(s) will exceed your droplet limit");
        }

        let (lag, faults) = (self.config().lag, self.config().faults);
        let visible_at = now + inner.within(lag.visible);
        let listed_at = visible_at.max(now + inner.within(lag.listed));
        let active_at = now + inner.within(lag.active);
        let booted_at = active_at + inner.within(lag.boot);
        let id = inner.id();
        let action = inner.id();
        let vanishes = inner.chance(faults.placement);
        let droplet = Droplet {
            id,
            name,
            size: size.slug.to_owned(),
            region: (*region).to_owned(),
            node: Node::new(&user_data, inner.chance(faults.node)),
            user_data,
            created_at: now,
            address: self.config().address.unwrap_or_else(|| inner.new_address()),
            image,
            visible_at,
            listed_at,
            tagged_at: listed_at.max(now + inner.within(lag.tagged)),
            address_at: now + inner.within(lag.address),
            active_at,
            booted_at,
            vanishes_at: vanishes.then(|| now + inner.within(lag.active)),
            locked_until: active_at,
            power: true,
            destroyed_at: None,
            gone_at: None,
            disk: size.disk,
            tags: tags.clone(),
        };
        inner.tags.extend(tags);
        inner.posts += 1;
        let mut shown = droplet.json(now);
        // Whatever the lag, the answer to the order itself is that of a droplet that is being made.
        shown["networks"] = json!({ "v4": [], "v6": [] });
        shown["status"] = json!("new");
        shown["locked"] = json!(true);
        shown["tags"] = json!(droplet.tags);
        let ends_at = active_at;
        let region = droplet.region.clone();
        inner.droplets.insert(id, droplet);
        inner.actions.insert(
            action,
            Action {
                id: action,
                kind: "create".to_owned(),
                droplet: id,
                region,
                started_at: now,
                visible_at,
                ends_at,
                fails: vanishes,
                effect: None,
            },
        );
        self.boot(id);
        let href = format!("{}/v2/actions/{action}", request.base);
        Answer::new(
            202,
            json!({ "droplet": shown, "links": { "actions": [{ "id": action, "rel": "create", "href": href }] } }),
        )
    }

    /// What is asked of a droplet that is seen.
    fn one(
        &self,
        inner: &mut Inner,
        request: &Request<'_>,
        method: &str,
        id: u64,
        rest: &[&str],
        now: Timestamp,
    ) -> Answer {
        let associated = "destroy_with_associated_resources";
        match (method, rest) {
            ("GET", []) => Answer::new(200, json!({ "droplet": inner.droplets[&id].json(now) })),
            ("DELETE", []) => self.destroy(inner, id, now, 204),
            ("POST", ["actions"]) => self.act(inner, request, id, now),
            ("GET", [name]) if *name == associated => {
                let of = |kept: &std::collections::BTreeMap<String, Kept>| -> Vec<Value> {
                    let here = kept.values().filter(|one| one.droplet == id);
                    here.map(|one| json!({ "id": one.id, "name": one.name, "cost": "1.00" })).collect()
                };
                let (snapshots, volumes) = (of(&inner.snapshots), of(&inner.volumes));
                Answer::new(
                    200,
                    json!({
                        "reserved_ips": [], "floating_ips": [], "snapshots": snapshots, "volumes": volumes,
                        "volume_snapshots": [],
                    }),
                )
            }
            ("DELETE", [name, "selective"]) if *name == associated => {
                for (list, snapshots) in [("snapshots", true), ("volumes", false), ("volume_snapshots", true)] {
                    for named in request.body[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
                        match snapshots {
                            true => inner.snapshots.remove(named),
                            false => inner.volumes.remove(named),
                        };
                    }
                }
                self.destroy(inner, id, now, 202)
            }
            ("POST", [name, "retry"]) if *name == associated => {
                Answer::error(409, "The request could not be completed due to a conflict.")
            }
            _ => Answer::not_found(),
        }
    }

    fn destroy(&self, inner: &mut Inner, id: u64, now: Timestamp, accepted: u16) -> Answer {
        let lag = inner.within(self.config().lag.gone);
        let droplet = inner.droplets.get_mut(&id).expect("looked up by the caller");
        if now < droplet.locked_until.max(droplet.active_at) && droplet.destroyed_at.is_none() {
            return Answer::error(422, "Droplet already has a pending event.");
        }
        droplet.destroy(now, lag);
        Answer::empty(accepted)
    }

    fn act(&self, inner: &mut Inner, request: &Request<'_>, id: u64, now: Timestamp) -> Answer {
        let droplet = &inner.droplets[&id];
        let pending = || Answer::error(422, "Droplet already has a pending event.");
        if now < droplet.locked_until.max(droplet.active_at) || droplet.destroyed_at.is_some() {
            return pending();
        }
        let (power, disk) = (droplet.power, droplet.disk);
        let kind = request.body["type"].as_str().unwrap_or_default().to_owned();
        let wrong = |message: &str| Answer::error(422, message);
        let effect = match kind.as_str() {
            "power_on" if power => return wrong("Droplet is already powered on."),
            "power_on" => Effect::Power(true),
            "power_off" | "shutdown" if !power => return wrong("Droplet is already powered off."),
            "power_off" => Effect::Power(false),
            "shutdown" if inner.chance(self.config().faults.deaf) => Effect::Nothing,
            "shutdown" => Effect::Power(false),
            "reboot" | "power_cycle" => Effect::Nothing,
            "resize" if power => return wrong("Droplet must be powered off to be resized."),
            "resize" => match request.body["size"].as_str().and_then(droplets::size) {
                Some(size) if !size.available => return wrong("Size is not available in this region."),
                Some(size) if size.disk < disk => {
                    return wrong("This size is not available because it has a smaller disk.");
                }
                Some(size) => Effect::Size(size.slug.to_owned()),
                None => return wrong("You specified an invalid size."),
            },
            _ => return Answer::error(422, "The action type is not supported."),
        };
        let ends_at = now + inner.within(self.config().lag.action);
        let action = Action {
            id: inner.id(),
            kind,
            droplet: id,
            region: inner.droplets[&id].region.clone(),
            started_at: now,
            // An action, too, is not there for a moment.
            visible_at: now + inner.within(self.config().lag.visible.min(SignedDuration::from_secs(1))),
            ends_at,
            fails: inner.chance(self.config().faults.action),
            effect: Some(effect),
        };
        inner.droplets.get_mut(&id).expect("looked up by the caller").locked_until = ends_at;
        let shown = action.json(now);
        inner.actions.insert(action.id, action);
        inner.settle(now);
        Answer::new(201, json!({ "action": shown }))
    }
}

fn list(inner: &Inner, request: &Request<'_>, now: Timestamp) -> Answer {
    let (tag, name) = (request.query.get("tag_name"), request.query.get("name"));
    if tag.is_some() && name.is_some() {
        return Answer::error(400, "tag_name and name cannot be combined.");
    }
    let wanted = |droplet: &&Droplet| {
        let tagged = tag.is_none_or(|tag| droplet.shows_tags(now) && droplet.tags.contains(tag));
        let named = name.is_none_or(|name| droplet.name.eq_ignore_ascii_case(name));
        droplet.is_listed(now) && tagged && named
    };
    paged(request, "droplets", inner.droplets.values().filter(wanted).map(|droplet| droplet.json(now)).collect())
}

/// A page of a list, with links to the others.
fn paged(request: &Request<'_>, key: &str, all: Vec<Value>) -> Answer {
    let number = |name: &str| request.query.get(name).and_then(|text| text.parse::<usize>().ok());
    let (page, per_page) = (number("page").unwrap_or(1).max(1), number("per_page").unwrap_or(20));
    if !(1..=200).contains(&per_page) {
        return Answer::error(400, "per_page is between 1 and 200.");
    }
    let (total, last) = (all.len(), all.len().div_ceil(per_page).max(1));
    let shown: Vec<_> = all.into_iter().skip((page - 1) * per_page).take(per_page).collect();
    let url = |page: usize| {
        let base = format!("{}/{}?page={page}&per_page={per_page}", request.base, request.path.join("/"));
        let filters = ["tag_name", "name"].into_iter().filter_map(|name| Some((name, request.query.get(name)?)));
        filters.fold(base, |url, (name, value)| format!("{url}&{name}={value}"))
    };
    let mut pages = serde_json::Map::new();
    if page < last {
        pages.insert("next".to_owned(), json!(url(page + 1)));
        pages.insert("last".to_owned(), json!(url(last)));
    }
    if page > 1 {
        pages.insert("prev".to_owned(), json!(url(page - 1)));
        pages.insert("first".to_owned(), json!(url(1)));
    }
    let links = if pages.is_empty() { json!({}) } else { json!({ "pages": pages }) };
    Answer::new(200, json!({ key: shown, "links": links, "meta": { "total": total } }))
}

fn destroy_status(inner: &Inner, id: u64, now: Timestamp) -> Answer {
    let Some(droplet) = inner.droplets.get(&id) else { return Answer::not_found() };
    let Some(destroyed) = droplet.destroyed_at else { return Answer::not_found() };
    let gone = droplet.gone_at.filter(|gone| *gone <= now);
    let mut status = json!({
        "droplet": { "id": id.to_string(), "name": droplet.name },
        "resources": {
            "reserved_ips": [], "floating_ips": [], "snapshots": [], "volumes": [], "volume_snapshots": [],
        },
        "failures": 0,
    });
    if gone.is_some() {
        status["droplet"]["destroyed_at"] = json!(seconds(destroyed));
        status["completed_at"] = json!(seconds(destroyed));
    }
    Answer::new(200, status)
}

fn account(inner: &Inner, droplet_limit: usize) -> Value {
    json!({ "account": {
        "droplet_limit": droplet_limit,
        "floating_ip_limit": 5,
        "email": "operator@example.com",
        "name": "Operator",
        "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
        "email_verified": true,
        "status": if inner.locked { "locked" } else { "active" },
        "status_message": if inner.locked { "Your account has been locked." } else { "" },
    } })
}

fn tagged_counts() -> Value {
    json!({
        "count": 0, "droplets": { "count": 0 }, "images": { "count": 0 }, "volumes": { "count": 0 },
        "volume_snapshots": { "count": 0 }, "databases": { "count": 0 },
    })
}

/// Tags have a form of refusal of their own.
fn bad_tag() -> Answer {
    let refusal = json!({ "error": "Error validating resource", "messages": ["invalid name"], "root_causes": [] });
    Answer::new(400, refusal)
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    (1..=255).contains(&name.len()) && name.chars().all(allowed) && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_tag(tag: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':');
    (1..=255).contains(&tag.len()) && tag.chars().all(allowed)
}
