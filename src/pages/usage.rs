//! What a box uses: now, and drawn by the hour and by the day. The drawings are made here, so that they need no script.

use std::fmt;

use askama::{Template, filters::HtmlSafe};
use axum::{extract::State, response::Response};
use uuid::Uuid;

use super::{
    Shell, boxes, page,
    show::{self, Bytes, When},
    visitor::SignedIn,
};
use crate::{
    api::{
        error::{Id, Problem},
        seedbox::resources,
    },
    app::App,
    clock::Time,
    ids::ResourceId,
    usage::{self, UsageSpan, UsageView},
};

/// What a box uses now.
pub(super) struct Used {
    pub(super) disk: Bytes,
    pub(super) disk_total: Bytes,
    pub(super) disk_percent: i64,
    pub(super) received: Bytes,
    pub(super) sent: Bytes,
    pub(super) since: When,
    pub(super) resets_at: When,
    pub(super) counted_at: When,
    pub(super) last_error: Option<String>,
}

impl From<UsageView> for Used {
    fn from(view: UsageView) -> Self {
        Self {
            disk: Bytes(view.disk_used_bytes),
            disk_total: Bytes(view.disk_total_bytes),
            disk_percent: percent(view.disk_used_bytes, view.disk_total_bytes),
            received: Bytes(view.received_bytes),
            sent: Bytes(view.sent_bytes),
            since: When(view.month_began_at),
            resets_at: When(view.resets_at),
            counted_at: When(view.counted_at),
            last_error: view.last_error,
        }
    }
}

fn percent(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * 100 / i128::from(whole.max(1))).unwrap_or(100)
}

/// What a box uses now; `None` as long as nobody has counted.
pub(super) async fn of(app: &App, id: ResourceId) -> sqlx::Result<Option<Used>> {
    Ok(usage::of(&app.pool, id, app.now()).await?.map(Used::from))
}

/// A row of hours or days, each drawn in a place of its own; those in which nobody counted are left empty.
struct Chart {
    /// For who cannot see it.
    title: String,
    places: usize,
    /// By place.
    spans: Vec<(usize, UsageSpan)>,
    /// What the full height stands for, in bytes; 0 if nothing is drawn.
    most: i64,
    what: Drawn,
    name: fn(Time) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Drawn {
    /// What came in above the line, what went out below it.
    Traffic,
    Disk,
}

/// Half of the height of a drawing in its own units; a place is 10 of them wide.
const HALF: i64 = 500;

impl Chart {
    fn of(
        what: Drawn,
        title: String,
        (first, seconds, places): (Time, i64, usize),
        spans: &[UsageSpan],
        at_least: i64,
        name: fn(Time) -> String,
    ) -> Self {
        let place = |span: &UsageSpan| usize::try_from((span.began_at.as_second() - first.as_second()) / seconds).ok();
        let spans: Vec<_> =
            spans.iter().filter_map(|span| Some((place(span).filter(|n| *n < places)?, span.clone()))).collect();
        let height = |span: &UsageSpan| match what {
            Drawn::Traffic => span.received_bytes.max(span.sent_bytes),
            Drawn::Disk => span.disk_used_bytes,
        };
        let most = spans.iter().map(|(_, span)| height(span)).max().unwrap_or(0).max(at_least);
        Self { title, places, spans, most, what, name }
    }

    fn most(&self) -> Bytes {
        Bytes(self.most)
    }

    fn scaled(&self, bytes: i64, height: i64) -> i64 {
        let scaled =
            i64::try_from(i128::from(bytes) * i128::from(height) / i128::from(self.most.max(1))).unwrap_or(height);
        // What is there is seen, however little it is.
        if bytes > 0 { scaled.max(2 * HALF / 60) } else { 0 }
    }

    fn bar(&self, f: &mut fmt::Formatter<'_>, class: &str, place: usize, bytes: i64, said: &str) -> fmt::Result {
        let (top, height) = match (self.what, class) {
            (Drawn::Traffic, "received") => {
                let height = self.scaled(bytes, HALF);
                (HALF - height, height)
            }
            (Drawn::Traffic, _) => (HALF, self.scaled(bytes, HALF)),
            (Drawn::Disk, _) => {
                let height = self.scaled(bytes, 2 * HALF);
                (2 * HALF - height, height)
            }
        };
        if height == 0 {
            return Ok(());
        }
        let left = place * 10 + 1;
        write!(
            f,
            "<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"8\" height=\"{height}\"><title>{said}</title></rect>"
        )
    }
}

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.places * 10;
        let (title, height) = (&self.title, 2 * HALF);
        write!(
            f,
            "<svg class=\"chart\" role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\">"
        )?;
        let middle = if self.what == Drawn::Traffic { HALF } else { height };
        write!(
            f,
            "<path class=\"axis\" d=\"M0 {middle}H{width}M0 0H{width}M0 {height}H{width}\" vector-effect=\"non-scaling-stroke\"/>"
        )?;
        for (place, span) in &self.spans {
            let name = (self.name)(span.began_at);
            match self.what {
                Drawn::Traffic => {
                    let received = format!("{name}: {} in", Bytes(span.received_bytes));
                    self.bar(f, "received", *place, span.received_bytes, &received)?;
                    let sent = format!("{name}: {} out", Bytes(span.sent_bytes));
                    self.bar(f, "sent", *place, span.sent_bytes, &sent)?;
                }
                Drawn::Disk => {
                    let said = format!("{name}: {}", Bytes(span.disk_used_bytes));
                    self.bar(f, "disk", *place, span.disk_used_bytes, &said)?;
                }
            }
        }
        f.write_str("</svg>")
    }
}

// Everything in it is made of numbers, dates and our own words.
impl HtmlSafe for Chart {}

/// A drawing with its frame.
struct Drawing {
    chart: Chart,
    first: String,
    last: String,
}

/// A line of the table.
struct Line {
    name: String,
    received: Bytes,
    sent: Bytes,
    disk: Bytes,
}

#[derive(Template)]
#[template(path = "box_usage.html")]
struct UsagePage {
    shell: Shell,
    id: ResourceId,
    label: String,
    now: Option<Used>,
    days: Drawing,
    hours: Drawing,
    disk: Drawing,
    lines: Vec<Line>,
}

const DAYS: usize = 30;
const HOURS: usize = 48;

fn hour(time: Time) -> String {
    time.0.strftime("%-d %B, %H:00 UTC").to_string()
}

/// The first of so many spans, of which the last one is now.
fn first_of(now: Time, seconds: i64, places: usize) -> Time {
    let last = now.as_second() - now.as_second().rem_euclid(seconds);
    let back = i64::try_from(places).unwrap_or(0).saturating_sub(1) * seconds;
    Time(jiff::Timestamp::from_second(last - back).unwrap_or(now.0))
}

/// `GET /seedbox/boxes/{id}/usage`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let resource = boxes::own(&app, &person, id).await?;
    resources::refuse_byos(&resource)?;
    let now = app.now();
    let (first_day, first_hour) = (first_of(now, 86_400, DAYS), first_of(now, 3_600, HOURS));
    let days = usage::days(&app.pool, resource.id, first_day).await?;
    let hours = usage::hours(&app.pool, resource.id, first_hour).await?;
    let known = usage::of(&app.pool, resource.id, now).await?;
    let room = known.as_ref().map_or(0, |known| known.disk_total_bytes);
    let by_day = (first_day, 86_400, DAYS);
    let sum = |of: fn(&UsageSpan) -> i64, spans: &[UsageSpan]| Bytes(spans.iter().map(of).fold(0, i64::saturating_add));
    let told = |of: &str, spans: &[UsageSpan]| {
        let (received, sent) = (sum(|span| span.received_bytes, spans), sum(|span| span.sent_bytes, spans));
        format!("Traffic of {of}: {received} in, {sent} out")
    };
    let drawing = |chart: Chart, first: String, last: &str| Drawing { chart, first, last: last.to_owned() };
    page(&UsagePage {
        days: drawing(
            Chart::of(Drawn::Traffic, told("the last 30 days", &days), by_day, &days, 0, show::day),
            show::day(first_day),
            "today",
        ),
        hours: drawing(
            Chart::of(Drawn::Traffic, told("the last 48 hours", &hours), (first_hour, 3_600, HOURS), &hours, 0, hour),
            hour(first_hour),
            "now",
        ),
        disk: drawing(
            Chart::of(
                Drawn::Disk,
                format!("Disk of the last 30 days, of {}", Bytes(room)),
                by_day,
                &days,
                room,
                show::day,
            ),
            show::day(first_day),
            "today",
        ),
        lines: days
            .iter()
            .rev()
            .map(|span| Line {
                name: span.began_at.strftime("%-d %b %Y").to_string(),
                received: Bytes(span.received_bytes),
                sent: Bytes(span.sent_bytes),
                disk: Bytes(span.disk_used_bytes),
            })
            .collect(),
        shell: Shell::new(&app, Some(&person), format!("Usage of {}", resource.label), "boxes"),
        id: resource.id,
        label: resource.label,
        now: known.map(Used::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(began_at: &str, received_bytes: i64, sent_bytes: i64) -> UsageSpan {
        UsageSpan { began_at: Time(began_at.parse().unwrap()), received_bytes, sent_bytes, disk_used_bytes: 0 }
    }

    #[test]
    fn a_day_is_drawn_in_its_place_and_to_the_scale_of_the_largest() {
        let first = Time("2027-02-01T00:00:00Z".parse().unwrap());
        let spans = [
            span("2027-01-31T00:00:00Z", 9_000, 0),
            span("2027-02-01T00:00:00Z", 1_000, 0),
            span("2027-02-03T00:00:00Z", 250, 500),
        ];
        let chart = Chart::of(Drawn::Traffic, "title".to_owned(), (first, 86_400, 3), &spans, 0, show::day).to_string();
        assert!(chart.contains("viewBox=\"0 0 30 1000\""));
        let bars: Vec<&str> = chart.split("<rect ").skip(1).map(|bar| bar.split("</rect>").next().unwrap()).collect();
        assert_eq!(
            bars,
            [
                "class=\"received\" x=\"1\" y=\"0\" width=\"8\" height=\"500\"><title>1 February 2027: 1.0 kB in</title>",
                "class=\"received\" x=\"21\" y=\"375\" width=\"8\" height=\"125\"><title>3 February 2027: 250 B in</title>",
                "class=\"sent\" x=\"21\" y=\"500\" width=\"8\" height=\"250\"><title>3 February 2027: 500 B out</title>",
            ],
            "what is older is not drawn, and nothing is no bar"
        );
    }

    #[test]
    fn the_last_place_is_now() {
        let now = Time("2027-02-03T10:20:30Z".parse().unwrap());
        assert_eq!(first_of(now, 86_400, 3).to_string(), "2027-02-01T00:00:00Z");
        assert_eq!(first_of(now, 3_600, 2).to_string(), "2027-02-03T09:00:00Z");
        assert_eq!(percent(1, 0), 100);
        assert_eq!(percent(49, 50), 98);
    }
}
