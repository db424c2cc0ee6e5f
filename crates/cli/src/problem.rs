//! Errors for people, in three parts: what happened, why, and what to do next; and the exit code that scripts read.

use std::error::Error;
use std::process::ExitCode;

use outlast_client::ClientError;

use crate::term::Paint;

/// The exit codes; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    /// The thing asked about failed: a job that was followed, a verification that found damage.
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Denied = 5,
    /// Cluster unreachable, or no leader in time.
    Unreachable = 6,
    /// A daemon's data folder is damaged or belongs to another (EX_CONFIG): a restart does not help, so systemd and
    /// others must not try.
    Folder = 78,
    /// Ctrl-C, as shells count it.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// One failed command.
#[derive(Debug)]
pub(crate) struct Problem {
    what: String,
    why: Vec<String>,
    next: Vec<String>,
    exit: Exit,
}

impl Problem {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { what: what.into(), why: Vec::new(), next: Vec::new(), exit }
    }

    /// Whoever read the output went away (`| head`): nothing to say, and no failure.
    pub(crate) fn nobody_reads() -> Self {
        Self::new(Exit::Done, "")
    }

    #[must_use]
    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    /// The whole chain of sources, one reason a line.
    #[must_use]
    pub(crate) fn because_of(mut self, error: &dyn Error) -> Self {
        let mut source = Some(error);
        while let Some(error) = source {
            let text = error.to_string();
            if self.why.last() != Some(&text) {
                self.why.push(text);
            }
            source = error.source();
        }
        self
    }

    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        let next = next.into();
        if !next.is_empty() {
            self.next.push(next);
        }
        self
    }

    pub(crate) fn show(&self) -> ExitCode {
        if !self.what.is_empty() {
            crate::term::talk(&self.text(Paint::stderr()));
        }
        self.exit.into()
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!("{} {}", paint.red("error:"), self.what);
        for why in &self.why {
            text += &format!("\n  {} {why}", paint.dim("why:"));
        }
        for next in &self.next {
            text += &format!("\n  {} {next}", paint.dim("try:"));
        }
        text
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        let hint = error.hint().to_owned();
        let what = error.to_string();
        let plain = |exit: Exit| Self::new(exit, what.clone()).next(hint.clone());
        match &error {
            ClientError::Rejected { .. } => plain(Exit::Usage),
            ClientError::NotFound { .. } => plain(Exit::NotFound),
            ClientError::Conflict { .. } => plain(Exit::Conflict),
            ClientError::Denied { .. } => plain(Exit::Denied),
            ClientError::Unreachable { tried, answered, .. } => {
                let mut problem = plain(Exit::Unreachable);
                for tried in tried {
                    problem = problem.because(format!("{}: {}", tried.endpoint, tried.why));
                }
                problem.next(if *answered {
                    "wait for an election and try again, or allow more time with --timeout 30s"
                } else {
                    "start a cluster here with `outlast dev`, or name one with --coordinator HOST:PORT or OUTLAST_COORDINATOR"
                })
            }
            ClientError::NoEndpoint => plain(Exit::Usage).next("give --coordinator HOST:PORT"),
            ClientError::Address(_) => plain(Exit::Usage),
            ClientError::Bundle { .. } => match error.source() {
                Some(source) => plain(Exit::Usage).because_of(source),
                None => plain(Exit::Usage),
            },
            ClientError::Failed { .. } => plain(Exit::Failed)
                .next("look at the coordinators' logs; `outlast cluster status` shows who leads"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_unreachable_cluster_says_what_why_and_what_next() {
        let tried = vec![outlast_client::Tried {
            endpoint: "http://127.0.0.1:7400".into(),
            why: "connection refused".into(),
        }];
        let waited = Duration::from_secs(10);
        let problem =
            Problem::from(ClientError::Unreachable { tried, waited, answered: false, hint: String::new() });
        assert_eq!(
            problem.text(Paint::none()),
            "error: no coordinator could be reached within 10.0 s\n  why: http://127.0.0.1:7400: connection refused\n  \
             try: start a cluster here with `outlast dev`, or name one with --coordinator HOST:PORT or \
             OUTLAST_COORDINATOR"
        );
        assert_eq!(problem.exit, Exit::Unreachable);
    }

    #[test]
    fn each_class_has_its_exit_code() {
        let (reason, hint) = (String::new, String::new);
        let cases = [
            (ClientError::Rejected { reason: reason(), hint: hint() }, 2),
            (ClientError::NotFound { what: reason(), hint: hint() }, 3),
            (ClientError::Conflict { reason: reason(), hint: hint() }, 4),
            (ClientError::Denied { reason: reason(), hint: hint() }, 5),
            (ClientError::Failed { reason: reason() }, 1),
        ];
        for (error, code) in cases {
            let text = format!("{error:?}");
            assert_eq!(Problem::from(error).exit as u8, code, "{text}");
        }
    }
}
