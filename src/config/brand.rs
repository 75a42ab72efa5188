//! The settings about the operator: name, colour, logo, and what the law asks them to say.

use std::path::Path;

use crate::brand::Brand;

/// The largest text and logo.
const MAX_FILE: u64 = 200_000;

/// Reads what is set; what cannot be used goes to `problems`.
pub(super) fn read(get: &impl Fn(&str, &Option<String>) -> Option<String>, problems: &mut Vec<String>) -> Brand {
    let text = |name: &str, longest: usize, problems: &mut Vec<String>| {
        let value = get(name, &None).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())?;
        if value.chars().count() > longest {
            problems.push(format!("{name} has more than {longest} characters"));
        }
        Some(value)
    };
    let file = |name: &str, problems: &mut Vec<String>| {
        let path = get(name, &None)?;
        match read_file(Path::new(&path)) {
            Ok(bytes) => Some((path, bytes)),
            Err(error) => {
                problems.push(format!("{name}: {path} cannot be read: {error}"));
                None
            }
        }
    };
    let words = |name: &str, problems: &mut Vec<String>| {
        let (path, bytes) = file(name, problems)?;
        match String::from_utf8(bytes) {
            Ok(text) if !text.trim().is_empty() => Some(text.replace("\r\n", "\n")),
            Ok(_) => {
                problems.push(format!("{name}: {path} is empty"));
                None
            }
            Err(_) => {
                problems.push(format!("{name}: {path} is not UTF-8 text"));
                None
            }
        }
    };
    let contact_email = text("SEEDPLANE_CONTACT_EMAIL", 254, problems);
    if let Some(address) = contact_email.as_ref().filter(|address| address.parse::<lettre::Address>().is_err()) {
        problems.push(format!("SEEDPLANE_CONTACT_EMAIL is '{address}', which is not an e-mail address"));
    }
    let colour = get("SEEDPLANE_BRAND_COLOUR", &None).and_then(|value| {
        let colour = colours(&value);
        if colour.is_none() {
            problems.push(format!("SEEDPLANE_BRAND_COLOUR is '{value}'; it is a colour such as #17624a"));
        }
        colour
    });
    let logo = file("SEEDPLANE_BRAND_LOGO", problems).and_then(|(path, bytes)| {
        let kind = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some("image/png")
        } else if path.ends_with(".svg") && bytes.windows(4).any(|window| window == b"<svg") {
            Some("image/svg+xml")
        } else {
            problems.push(format!("SEEDPLANE_BRAND_LOGO: {path} is neither a PNG nor an SVG"));
            None
        };
        Some((kind?, bytes))
    });
    Brand {
        name: text("SEEDPLANE_BRAND_NAME", 40, problems),
        colour,
        logo,
        contact_email,
        legal_entity: text("SEEDPLANE_LEGAL_ENTITY", 500, problems),
        dmca_agent: text("SEEDPLANE_DMCA_AGENT", 500, problems),
        terms: words("SEEDPLANE_TERMS_FILE", problems),
        privacy: words("SEEDPLANE_PRIVACY_FILE", problems),
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    std::fs::read(path)
}

/// What has to be said before real money is taken: a page that says nothing, or a placeholder, is worse than none.
pub(super) fn missing(brand: &Brand) -> Vec<String> {
    let needed = [
        ("SEEDPLANE_BRAND_NAME", brand.name.is_none(), "the name of the service"),
        ("SEEDPLANE_CONTACT_EMAIL", brand.contact_email.is_none(), "where customers write to"),
        ("SEEDPLANE_LEGAL_ENTITY", brand.legal_entity.is_none(), "who customers deal with, with an address"),
        ("SEEDPLANE_DMCA_AGENT", brand.dmca_agent.is_none(), "the agent for notices of infringement"),
        ("SEEDPLANE_TERMS_FILE", brand.terms.is_none(), "the terms that customers accept"),
        ("SEEDPLANE_PRIVACY_FILE", brand.privacy.is_none(), "what is done with personal data"),
    ];
    let missing = needed.into_iter().filter(|(_, missing, _)| *missing);
    missing.map(|(name, _, what)| format!("production needs {name}: {what}, on the public pages")).collect()
}

/// A colour for light pages and one for dark ones: as much darker or lighter than what was set as text needs to be read on
/// them (WCAG 2.2, 1.4.3: a contrast of 4.5).
fn colours(value: &str) -> Option<(String, String)> {
    let digits = value.trim().strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii())?;
    let part = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    let colour = [part(0)?, part(2)?, part(4)?];
    const WHITE: [u8; 3] = [255; 3];
    const DARK_CARD: [u8; 3] = [0x26, 0x2b, 0x33];
    let toward = |end: [u8; 3], grounds: &[[u8; 3]]| {
        (0..=100u16)
            .map(|percent| mix(colour, end, percent))
            .find(|mixed| grounds.iter().all(|ground| contrast(*mixed, *ground) >= 4.5))
    };
    let light = toward([0; 3], &[WHITE, [0xf7, 0xf7, 0xf5]])?;
    let dark = toward(WHITE, &[DARK_CARD])?;
    let text = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    Some((text(light), text(dark)))
}

fn mix(from: [u8; 3], to: [u8; 3], percent: u16) -> [u8; 3] {
    let one = |index: usize| {
        let mixed = u16::from(from[index]) * (100 - percent) + u16::from(to[index]) * percent;
        u8::try_from(mixed / 100).unwrap_or(u8::MAX)
    };
    [one(0), one(1), one(2)]
}

#[allow(clippy::float_arithmetic, reason = "the definition of relative luminance; no money here")]
fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let luminance = |colour: [u8; 3]| {
        let linear = colour.map(|part| {
            let part = f64::from(part) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_can_be_read_in_both_themes() {
        assert!((contrast([0; 3], [255; 3]) - 21.0).abs() < 0.01);
        for value in ["#17624a", "#ffff00", "#000000", "#ffffff", "#3b82f6", "#FF0000"] {
            let (light, dark) = colours(value).unwrap();
            let parse = |text: &str| {
                let part = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
                [part(1), part(3), part(5)]
            };
            assert!(contrast(parse(&light), [255; 3]) >= 4.5, "{value}: {light}");
            assert!(contrast(parse(&dark), [0x1b, 0x1f, 0x26]) >= 4.5, "{value}: {dark}");
        }
        assert_eq!(colours("#17624a").unwrap().0, "#17624a", "what can be read is left as it is");
        for wrong in ["", "red", "#fff", "#12345g", "17624a", "#17624a; }"] {
            assert_eq!(colours(wrong), None, "{wrong}");
        }
    }
}
