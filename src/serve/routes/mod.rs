//! The routes, one file each. Handlers only translate.

pub(super) mod draw;
pub(super) mod embed;
pub(super) mod openai;
pub(super) mod openapi;
pub(super) mod page;
pub(super) mod prior;
pub(super) mod status;
