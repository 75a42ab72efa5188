//! Live parts of pages: a part is rendered again every second that somebody looks, and sent when it has changed. Without
//! scripts the page is what it was when it was opened.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::header,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use super::visitor::Person;
use crate::{accounts, api::error::Problem, app::App};

/// How often a part is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// After how many looks it is seen whether the session is still good.
const SESSION_EVERY: u32 = 5;

/// How long one stream lasts; the browser opens the next one by itself.
const LASTS: Duration = Duration::from_secs(240);

/// How many streams one copy serves; whoever comes after them sees the page without updates.
static STREAMS: std::sync::LazyLock<Arc<Semaphore>> = std::sync::LazyLock::new(|| Arc::new(Semaphore::new(500)));

/// Sends what `render` gives, now and whenever it is something else. Ends when `render` fails: the page that comes with the
/// next look says why.
///
/// # Errors
/// That too many look already, or that it is asked for without a session.
pub(super) fn stream<R, F>(app: &App, person: &Person, render: R) -> Result<Response, Problem>
where
    R: Fn() -> F + Send + 'static,
    F: Future<Output = Result<String, Problem>> + Send,
{
    let Ok(place) = Arc::clone(&STREAMS).try_acquire_owned() else {
        return Err(Problem::new(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            "too-many-streams",
            "too many pages are kept up to date at this moment; load the page again to see what is new",
        ));
    };
    let (app, session) = (app.clone(), person.session()?);
    let mut stopping = app.stopping.clone();
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(2);
    tokio::spawn(async move {
        let _place = place;
        let ends = Instant::now() + LASTS;
        let mut last = String::new();
        let mut looks = 0u32;
        while Instant::now() < ends && !sender.is_closed() {
            // A session that was ended elsewhere shows nothing any more.
            if looks.is_multiple_of(SESSION_EVERY)
                && !accounts::session_is_good(&app.pool, session, app.now()).await.unwrap_or(false)
            {
                return;
            }
            looks = looks.wrapping_add(1);
            let Ok(part) = render().await else { return };
            let lasting = without_counters(&part);
            if lasting != last {
                if sender.send(Ok(Event::default().data(&part))).await.is_err() {
                    return;
                }
                last = lasting;
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = sender.closed() => return,
                // Whoever stops the service does not wait for those who look.
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    });
    let stream = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)));
    // A proxy that collects an answer before it passes it on would keep the news back.
    Ok(([(header::HeaderName::from_static("x-accel-buffering"), "no")], stream).into_response())
}

/// A part without what its counters show, which go on by themselves: that a second has passed is no news.
fn without_counters(part: &str) -> String {
    let mut lasting = String::with_capacity(part.len());
    let mut rest = part;
    while let Some(at) = ["data-since=\"", "data-until=\""].iter().filter_map(|name| rest.find(name)).min() {
        let Some(start) = rest[at..].find('>') else { break };
        let (before, counter) = rest.split_at(at + start + 1);
        lasting.push_str(before);
        rest = counter.find('<').map_or("", |end| &counter[end..]);
    }
    lasting.push_str(rest);
    lasting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_second_has_passed_is_no_news() {
        let part = |since: &str, until: &str, word: &str| {
            format!(
                "<p>{word} <span data-since=\"2026-11-25T00:00:00Z\">{since}</span>, <b data-until=\"x\">{until}</b>.</p>"
            )
        };
        assert_eq!(without_counters(&part("0:01", "9:59", "a")), without_counters(&part("0:02", "9:58", "a")));
        assert_ne!(without_counters(&part("0:01", "9:59", "a")), without_counters(&part("0:01", "9:59", "b")));
        assert_eq!(without_counters("<p>1</p>"), "<p>1</p>");
        assert_eq!(without_counters("<p data-since=\"x"), "<p data-since=\"x");
    }
}
