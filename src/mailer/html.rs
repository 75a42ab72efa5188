//! A mail's text once more, for programs that show HTML: the very same words between the operator's name and where to write
//! to. Nothing in it is loaded from anywhere, so that reading a mail tells nobody.

use askama::Template;

use crate::brand::Brand;

/// The accent of an operator who set none: that of the pages.
const ACCENT: &str = "#17624a";

/// How the last part of a one-time link begins, as it does for every token that such a link carries.
const ONE_TIME_TOKEN: &str = "/spl_";

/// What stands around the words of every mail.
#[derive(Debug, Clone)]
pub struct Letterhead {
    name: String,
    contact: Option<String>,
    /// White is readable on it: it is the accent that is readable on a light page.
    accent: String,
}

#[derive(Template)]
#[template(path = "mail.html")]
struct Page<'a> {
    subject: &'a str,
    letterhead: &'a Letterhead,
    blocks: Vec<Block<'a>>,
}

impl Letterhead {
    /// The letterhead of an operator.
    pub fn new(brand: &Brand) -> Self {
        Self {
            name: brand.name().to_owned(),
            contact: brand.contact_email.clone(),
            accent: brand.colour.as_ref().map_or(ACCENT, |(light, _)| light).to_owned(),
        }
    }

    /// A mail's text as an HTML document, everything in it escaped.
    ///
    /// # Errors
    /// Those of the template.
    pub fn html(&self, subject: &str, text: &str) -> askama::Result<String> {
        Page { subject, letterhead: self, blocks: blocks(text) }.render()
    }
}

/// A part of a mail's text.
#[derive(Debug, PartialEq, Eq)]
enum Block<'a> {
    /// Lines that stay lines.
    Paragraph(Vec<Line<'a>>),
    /// What followed `- ` on lines one after the other.
    List(Vec<&'a str>),
    /// A line that is a one-time link: what its reader is to do.
    OneTimeLink(&'a str),
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Words(&'a str),
    /// Nothing but a URL.
    Link(&'a str),
}

/// What a text consists of. A URL inside a sentence is no link: that is where the names stand that people gave their things.
fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut goes_on = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            goes_on = false;
            continue;
        }
        let is_url =
            (line.starts_with("https://") || line.starts_with("http://")) && !line.contains(char::is_whitespace);
        let last = if goes_on { blocks.last_mut() } else { None };
        if is_url && line.rfind('/').is_some_and(|slash| line[slash..].starts_with(ONE_TIME_TOKEN)) {
            blocks.push(Block::OneTimeLink(line));
        } else if let Some(item) = line.strip_prefix("- ") {
            match last {
                Some(Block::List(items)) => items.push(item),
                _ => blocks.push(Block::List(vec![item])),
            }
        } else {
            let line = if is_url { Line::Link(line) } else { Line::Words(line) };
            match last {
                Some(Block::Paragraph(lines)) => lines.push(line),
                _ => blocks.push(Block::Paragraph(vec![line])),
            }
        }
        goes_on = true;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_paragraphs_lists_and_links() {
        let text = "One <b>\nhttps://example.org/a?b&c\nhttps://example.org/ and more\n\n\nSee:\n- first\n- second\nlast\n- third\n\n\
                    - fourth\r\nOpen:\nhttps://example.org/link/spl_abc\nafter\njavascript:alert(1)\n-5 degrees\n";
        use Line::{Link, Words};
        let expected = [
            Block::Paragraph(vec![
                Words("One <b>"),
                Link("https://example.org/a?b&c"),
                Words("https://example.org/ and more"),
            ]),
            Block::Paragraph(vec![Words("See:")]),
            Block::List(vec!["first", "second"]),
            Block::Paragraph(vec![Words("last")]),
            Block::List(vec!["third"]),
            Block::List(vec!["fourth"]),
            Block::Paragraph(vec![Words("Open:")]),
            Block::OneTimeLink("https://example.org/link/spl_abc"),
            Block::Paragraph(vec![Words("after"), Words("javascript:alert(1)"), Words("-5 degrees")]),
        ];
        assert_eq!(blocks(text), expected);
    }

    #[test]
    fn everything_is_escaped_and_nothing_is_loaded() {
        let brand = Brand {
            name: Some("Harbour & <Sons>".to_owned()),
            contact_email: Some("\"><script>@example.org".to_owned()),
            ..Brand::default()
        };
        let odd = "\"'><script>alert(1)</script>";
        let text =
            format!("{odd}\n\n- {odd}\n\nhttps://example.org/\"onclick='x'\n\nhttps://example.org/\"x/spl_\"y\n");
        let html = Letterhead::new(&brand).html(odd, &text).unwrap();
        for none in ["<script", "\"onclick", "\"x/", "<Sons", "src=", "url(", "@import", "<img", "<link"] {
            assert!(!html.contains(none), "{none}: {html}");
        }
        assert!(html.contains("Harbour &#38; &#60;Sons&#62;") && html.contains("#17624a"), "{html}");
        assert!(html.contains("<li>&#34;&#39;&#62;&#60;script&#62;alert(1)&#60;/script&#62;</li>"), "{html}");
        let plain = Letterhead::new(&Brand::default()).html("s", "t").unwrap();
        assert!(plain.contains(">Seedplane</p>") && !plain.contains("mailto:"), "{plain}");
    }
}
