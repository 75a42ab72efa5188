//! What an API token may be used for. [`needed`] is the one place that says it, for every route.

use axum::http::Method;

use super::Role;
use crate::seedbox::words;

words! {
    /// What an API token may be used for.
    Scope {
        /// Reads everything of one's own.
        Read = "read",
        /// Orders, runs and ends boxes.
        Boxes = "boxes",
        /// Pays in.
        Money = "money",
        /// Connects one's own servers and runs commands on them.
        Servers = "servers",
        /// Makes and revokes tokens, and ends sessions.
        Account = "account",
        /// Does what the owner's role as an operator allows.
        Operator = "operator",
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope: what a session has.
    pub const ALL: Self = Self((1 << Scope::ALL.len()) - 1);

    /// All that a role has.
    pub fn of_role(role: Role) -> Self {
        Scope::ALL.iter().copied().filter(|scope| *scope != Scope::Operator || role.reads_as_operator()).collect()
    }

    /// Whether a scope is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One by one.
    pub fn list(self) -> Vec<Scope> {
        Scope::ALL.iter().copied().filter(|scope| self.has(*scope)).collect()
    }

    /// As the database holds them.
    pub(super) fn words(self) -> Vec<String> {
        self.list().into_iter().map(|scope| scope.as_str().to_owned()).collect()
    }

    /// From what the database holds.
    pub(super) fn from_words(words: &[String]) -> Self {
        Scope::ALL.iter().copied().filter(|scope| words.iter().any(|word| word == scope.as_str())).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | (1 << scope as u8)))
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// One of these.
    OneOf(&'static [Scope]),
    /// A session: no token can do it, whatever its scopes.
    Session,
}

/// What a route needs, by its method and its path as the router has it. `None` for what no token is for.
pub fn needed(method: &Method, path: &str) -> Option<Needed> {
    let under = |start: &str| path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if !reads && (under("/api/auth/password") || under("/api/auth/totp") || under("/api/trial/sign-in-links")) {
        return Some(Needed::Session);
    }
    let scopes: &'static [Scope] = if under("/api/operator") {
        &[Scope::Operator]
    } else if under("/api/seedbox") {
        if reads { &[Scope::Read, Scope::Boxes] } else { &[Scope::Boxes] }
    } else if under("/api/billing") {
        if reads { &[Scope::Read, Scope::Money] } else { &[Scope::Money] }
    } else if under("/api/byos") {
        if reads { &[Scope::Read, Scope::Servers] } else { &[Scope::Servers] }
    } else if under("/api/auth") {
        if reads { &[Scope::Read, Scope::Account] } else { &[Scope::Account] }
    } else {
        return None;
    };
    Some(Needed::OneOf(scopes))
}
