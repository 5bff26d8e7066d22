//! How the end of a process is reported, worded as captured from a real kubelet and API server.

use crate::demo::api::{
    objects::new_uid,
    process::Exit,
    status::{Cause, Status},
};

/// Who words the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reporter {
    /// The API server, which translates `v5.channel.k8s.io` to SPDY and reads the kubelet's report.
    ApiServer,
    /// The kubelet's container runtime.
    Runtime,
}

/// The report as a `Status`, for protocols from version 4 on.
pub(super) fn status(exit: &Exit, command: &[String], reporter: Reporter) -> Status {
    match exit {
        Exit::Code(0) => Status::command_success(),
        Exit::Code(code) => {
            let cause = Cause { reason: "ExitCode", message: code.to_string(), field: String::new() };
            let message = format!("command terminated with non-zero exit code: {}", ended(*code, command, reporter));
            Status::command_failure("NonZeroExitCode", message, vec![cause], None)
        }
        Exit::NoSuchProgram(program) => {
            let why = missing(program);
            let (inner, prefix) = match reporter {
                Reporter::ApiServer => (format!("Internal error occurred: {why}"), "Internal error occurred: "),
                Reporter::Runtime => (why, "Internal error occurred: "),
            };
            let message = format!("{prefix}{inner}");
            let cause = Cause { message: inner, ..Cause::default() };
            Status::command_failure("InternalError", message, vec![cause], Some(500))
        }
    }
}

/// The report as plain text, for older protocols; nothing for success.
pub(super) fn text(exit: &Exit, command: &[String]) -> Option<String> {
    match exit {
        Exit::Code(0) => None,
        Exit::Code(code) => {
            let ended = ended(*code, command, Reporter::Runtime);
            Some(format!("command terminated with non-zero exit code: {ended}"))
        }
        Exit::NoSuchProgram(program) => Some(missing(program)),
    }
}

fn ended(code: u8, command: &[String], reporter: Reporter) -> String {
    match reporter {
        Reporter::ApiServer => format!("command terminated with exit code {code}"),
        Reporter::Runtime => format!("error executing command [{}], exit code {code}", command.join(" ")),
    }
}

fn missing(program: &str) -> String {
    let id = new_uid().replace('-', "");
    let why = if program.contains('/') {
        format!("stat {program}: no such file or directory")
    } else {
        "executable file not found in $PATH".to_owned()
    };
    format!(
        "error executing command in container: failed to exec in container: failed to start exec \"{id}\": OCI runtime exec failed: exec failed: unable to start container process: exec: \"{program}\": {why}: unknown"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_reported_as_captured() {
        let json = status(&Exit::Code(7), &[], Reporter::ApiServer).to_json();
        let expected = concat!(
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: "#,
            r#"command terminated with exit code 7","reason":"NonZeroExitCode","#,
            r#""details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn old_protocols_get_text_and_nothing_for_success() {
        let command = ["sh".to_owned(), "-c".to_owned(), "exit 7".to_owned()];
        let expected =
            "command terminated with non-zero exit code: error executing command [sh -c exit 7], exit code 7";
        assert_eq!(text(&Exit::Code(7), &command).as_deref(), Some(expected));
        assert_eq!(text(&Exit::Code(0), &command), None);
    }
}
