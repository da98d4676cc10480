//! What is wrong with a name that leads nowhere, and what was meant.

use std::ops::Range;

use super::super::Fault;
use super::super::schema::Field;
use super::Checker;
use crate::suggest::{did_you_mean, list};
use crate::units::shortened;

impl Checker<'_> {
    /// What is wrong with a name that leads nowhere.
    pub(super) fn unknown(&self, range: Range<usize>, path: &str) -> Fault {
        let shown = shortened(path);
        let root = path.split('.').next().unwrap_or(path);
        if let Some((local, kind)) = self.locals.iter().rev().find(|(local, _)| local == root) {
            return Fault::new(format!("`{local}` is {kind} and has no fields")).at(range);
        }
        let above = path.rsplit_once('.').map_or("", |(above, _)| above);
        if let Some(field) = Field::named(above).filter(|field| field.is_seen_by(self.scope)) {
            return Fault::new(format!("`{above}` is {} and has no fields", field.kind()))
                .at(range);
        }
        let group = format!("{path}.");
        let inside: Vec<&str> = self
            .scope
            .paths()
            .filter(|field| field.starts_with(&group))
            .collect();
        if !inside.is_empty() {
            let fault = Fault::new(format!("`{shown}` is not a value")).at(range);
            return fault.hint(format!("name one of its fields: {}", list(inside)));
        }
        if let Some(fault) = self.unseen(&range, path, root) {
            return fault;
        }
        let roots = self.scope.roots();
        if !roots.contains(&root) {
            return self.unknown_root(range.start, root);
        }
        let fault = Fault::new(format!("there is no `{shown}`")).at(range);
        let siblings = || {
            self.scope
                .paths()
                .filter(|field| field.split('.').next() == Some(root))
        };
        let near = did_you_mean(path, siblings());
        fault.hint(near.unwrap_or_else(|| format!("the fields are {}", list(siblings()))))
    }

    /// What is wrong with a name that other scopes see.
    pub(super) fn unseen(&self, range: &Range<usize>, path: &str, root: &str) -> Option<Fault> {
        let unseen = |what: &str| Fault::new(format!("{} does not see `{what}`", self.scope));
        let roots = self.scope.roots();
        if let Some(field) = Field::named(path).filter(|_| roots.contains(&root)) {
            let audience: Vec<String> = field.scopes().map(|scope| scope.to_string()).collect();
            let fault = unseen(path).at(range.clone());
            return Some(fault.hint(format!("only {} sees it", audience.join(" or "))));
        }
        let elsewhere = Field::all().any(|field| field.root() == root) && !roots.contains(&root);
        let fault = unseen(root).at(range.start..range.start + root.len());
        elsewhere.then(|| fault.hint(format!("it sees {}", list(roots))))
    }

    /// What is wrong with the first word of a name.
    pub(super) fn unknown_root(&self, start: usize, root: &str) -> Fault {
        let roots = self.scope.roots();
        let locals = self.locals.iter().map(|(local, _)| local.as_str());
        let near = did_you_mean(root, roots.iter().copied().chain(locals));
        let hint = near.or_else(|| self.field_named(root));
        let fault = Fault::new(format!("there is no `{}`", shortened(root)));
        let fault = fault.at(start..(start + root.len()).min(self.text.len()));
        fault.hint(hint.unwrap_or_else(|| {
            format!(
                "{} sees {}; text is quoted: 'text'",
                self.scope,
                list(roots)
            )
        }))
    }

    /// The field that ends like `name`.
    pub(super) fn field_named(&self, name: &str) -> Option<String> {
        let end = format!(".{name}");
        let mut fields = self.scope.paths();
        let field = fields.find(|field| field.ends_with(&end))?;
        Some(format!("did you mean `{field}`?"))
    }
}
