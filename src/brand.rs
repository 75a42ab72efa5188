//! Whose business this is: what the public pages and the mails say of the operator. Seedplane is the software; customers
//! deal with the operator.

use sha2::{Digest, Sha256};

/// What an operator says of themselves. Where something is left out the trial shows a placeholder that says so; production
/// refuses to start instead (`config::Settings`).
#[derive(Debug, Clone, Default)]
pub struct Brand {
    /// The name of the service; `Seedplane` if not set.
    pub name: Option<String>,
    /// The accent colour, `#rrggbb`, for light pages and for dark ones.
    pub colour: Option<(String, String)>,
    /// The logo: its kind (`image/svg+xml`, `image/png`) and its bytes.
    pub logo: Option<(&'static str, Vec<u8>)>,
    /// Where customers write to.
    pub contact_email: Option<String>,
    /// The person or company that customers deal with, with its address.
    pub legal_entity: Option<String>,
    /// The agent for notices of infringement: name, address, e-mail.
    pub dmca_agent: Option<String>,
    /// The terms, with the acceptable use: text with blank lines between paragraphs and `# ` before headings.
    pub terms: Option<String>,
    /// What is done with personal data, in the same form.
    pub privacy: Option<String>,
}

const PLACEHOLDER_TERMS: &str = "\
# These are no terms yet
This is a trial installation. Nothing here is sold for real money, and nothing here binds anybody. Before it takes real money \
its operator sets SEEDPLANE_TERMS_FILE.

# What a customer would agree to
You use your seedbox for what you have the right to share. Notices of infringement are passed on to you, and repeated ones end \
the box. You pay a month ahead from your balance; a month that cannot be paid is announced, has 3 days of grace, and then the \
box is suspended. 14 days later it is wiped.";

const PLACEHOLDER_PRIVACY: &str = "\
# This is no privacy notice yet
This is a trial installation. Before it takes real money its operator sets SEEDPLANE_PRIVACY_FILE.

# What this software keeps
Your e-mail address, a hash of your password, what was paid and charged, and a log of what was done to your boxes. The log \
names people by number; it cannot be changed, so nothing personal is written into it. Of whoever sends a \
notice or a report: what the form asked for.";

impl Brand {
    /// The name of the service.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("Seedplane")
    }

    /// The terms in force.
    pub fn terms(&self) -> &str {
        self.terms.as_deref().unwrap_or(PLACEHOLDER_TERMS)
    }

    /// Which terms these are: the beginning of their SHA-256, so that an acceptance names the very text.
    pub fn terms_version(&self) -> String {
        hex::encode(&Sha256::digest(self.terms().as_bytes())[..6])
    }

    /// The privacy notice.
    pub fn privacy(&self) -> &str {
        self.privacy.as_deref().unwrap_or(PLACEHOLDER_PRIVACY)
    }
}

/// A part of a text as operators write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block<'a> {
    /// A line that begins with `# `.
    Heading(&'a str),
    /// Lines up to a blank one.
    Paragraph(&'a str),
}

/// Headings and paragraphs of a text.
pub fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    for part in text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()) {
        match part.strip_prefix("# ") {
            None => blocks.push(Block::Paragraph(part)),
            Some(rest) => {
                let (heading, paragraph) = rest.split_once('\n').unwrap_or((rest, ""));
                blocks.push(Block::Heading(heading.trim()));
                if !paragraph.trim().is_empty() {
                    blocks.push(Block::Paragraph(paragraph.trim()));
                }
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_headings_and_paragraphs() {
        let text = "# One\nfirst\nstill first\n\nsecond\n\n\n# Two\n\nthird <b>\n";
        let expected = [
            Block::Heading("One"),
            Block::Paragraph("first\nstill first"),
            Block::Paragraph("second"),
            Block::Heading("Two"),
            Block::Paragraph("third <b>"),
        ];
        assert_eq!(blocks(text), expected);
    }

    #[test]
    fn other_terms_are_another_version() {
        let terms = |text: &str| Brand { terms: Some(text.to_owned()), ..Brand::default() }.terms_version();
        assert_eq!(terms("a"), terms("a"));
        assert_ne!(terms("a"), terms("a "));
        assert_eq!(terms("a").len(), 12);
    }
}
