//! Certificate authorities, join tokens and enrolment.
