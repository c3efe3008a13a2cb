//! `POST /prior`: all that the prior can do.

use crate::output::OutputFormat;
use crate::serve::answer::{Embedded, Form, Lines, NegativeEmbeds, json, response};
use crate::serve::ask::{Ask, Negatives};
use crate::serve::body::{self, Texts};
use crate::serve::failure::{Failure, Kind, Style};
use crate::serve::model::Wanted;
use crate::serve::options::Seeds;
use crate::serve::server::Server;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, header};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriorRequest {
    prompts: Texts,
    /// One for all, or one for each.
    negative_prompts: Option<Texts>,
    /// Row r draws its noise with this seed plus r.
    seed: Option<u64>,
    /// One for each prompt, whose sample k has that seed plus k.
    seeds: Option<Vec<u64>>,
    steps: Option<usize>,
    guidance_scale: Option<f64>,
    temperature: Option<f64>,
    /// Rows of each prompt.
    samples: Option<usize>,
    #[serde(default)]
    normalize: bool,
    /// Whether to give those that decoders of Kandinsky 2.x take too: of the negative prompts, or else of a black image.
    #[serde(default)]
    negative_image_embeds: bool,
    truncate: Option<bool>,
}

#[derive(Debug, Serialize)]
struct PriorResponse<'a> {
    model: &'a str,
    /// `(rows, dim)`, or `(rows, tokens, dim)` of sequences of latents, each of which is one list here.
    shape: Vec<usize>,
    /// Of each row.
    seeds: Vec<u64>,
    /// The places of prompts that were truncated.
    truncated: Vec<usize>,
    image_embeds: Vec<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_image_embeds: Option<Vec<Vec<f32>>>,
}

/// What a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Npy,
    Safetensors,
    JsonLines,
}

const MEDIA_TYPES: [(&str, Format); 4] = [
    ("application/json", Format::Json),
    ("application/x-npy", Format::Npy),
    ("application/octet-stream", Format::Safetensors),
    ("application/x-ndjson", Format::JsonLines),
];

impl Format {
    /// The first that a client names; JSON if it takes anything.
    ///
    /// # Errors
    /// [`Kind::NotAcceptable`] if it takes none.
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let names: Vec<String> = values
            .flat_map(|value| value.split(','))
            .map(|name| name.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .collect();
        let known = |name: &String| MEDIA_TYPES.iter().find(|(known, _)| known == name).map(|(_, format)| *format);
        let takes_any = |name: &String| matches!(name.as_str(), "" | "*/*" | "application/*");
        match names.iter().find_map(known) {
            Some(format) => Ok(format),
            None if names.is_empty() || names.iter().any(takes_any) => Ok(Self::Json),
            None => {
                let known = MEDIA_TYPES.map(|(name, _)| name).join(", ");
                Err(Failure::new(Kind::NotAcceptable, format!("Accept must name one of {known}")))
            }
        }
    }

    fn media_type(self) -> &'static str {
        MEDIA_TYPES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// Answers `POST /prior`.
pub(in crate::serve) async fn prior(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    answer(&server, request).await.unwrap_or_else(|failure| failure.response(Style::OpenAi))
}

async fn answer(server: &Arc<Server>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let format = Format::of(&parts.headers)?;
    let asked: PriorRequest = body::read(&parts.headers, body, &server.options.limits).await?;
    if asked.negative_image_embeds && format == Format::Npy {
        let message = "negative_image_embeds: application/x-npy holds one array; accept another format";
        return Err(Failure::of("negative_image_embeds", message));
    }
    let model = server.model()?;
    let info = &model.info;
    let (has_negatives, normalize) = (asked.negative_image_embeds, asked.normalize);
    let mut ask = ask(asked)?;
    let is_of_black_image = has_negatives && !ask.has_negatives(&server.options);
    if is_of_black_image {
        model.check_zero_embed()?;
        ask.negative_image_embeds = false;
    }
    let mut pending = server.embed(&ask, &parts)?;
    let negatives = match has_negatives {
        true if is_of_black_image => NegativeEmbeds::Shared(model.zero_embed().await?),
        true => NegativeEmbeds::Own,
        false => NegativeEmbeds::None,
    };
    let form = Form { first: 0, negatives, row_shape: info.row_shape, normalize };
    if format == Format::JsonLines {
        return Ok(response(format.media_type(), Lines::body(pending, form)));
    }
    let embeddings = pending.all().await?;
    let embedded = Embedded::new(&pending.rows, &embeddings, form)?;
    let file = match format {
        Format::Npy => OutputFormat::Npy,
        Format::Safetensors => OutputFormat::Safetensors,
        Format::Json | Format::JsonLines => {
            let shape = info.row_shape.map_or_else(|| vec![info.embedding_dim], |shape| shape.to_vec());
            let seeds = embedded.seeds();
            return Ok(json(&PriorResponse {
                model: &info.model_id,
                shape: [vec![seeds.len()], shape].concat(),
                seeds,
                truncated: std::mem::take(&mut pending.truncated),
                image_embeds: embedded.lists()?,
                negative_image_embeds: embedded.negative_lists()?,
            }));
        }
    };
    Ok(response(format.media_type(), embedded.file(file)?))
}

fn ask(asked: PriorRequest) -> Result<Ask, Failure> {
    let seeds = match (asked.seed, asked.seeds) {
        (Some(_), Some(_)) => return Err(Failure::of("seeds", "seed and seeds exclude each other")),
        (Some(seed), None) => Some(Seeds::From(seed)),
        (None, seeds) => seeds.map(Seeds::Each),
    };
    let negative_prompts = match asked.negative_prompts {
        None => Negatives::Default,
        Some(Texts::One(prompt)) => Negatives::Same(prompt),
        Some(Texts::Many(prompts)) => Negatives::Each(prompts),
    };
    let wanted = Wanted { steps: asked.steps, guidance_scale: asked.guidance_scale, temperature: asked.temperature };
    // As the command line does, which says so.
    let truncate = asked.truncate.unwrap_or(true);
    let ask = Ask::new(asked.prompts.into_vec(), "prompts", truncate);
    let (samples, negative_image_embeds) = (asked.samples.unwrap_or(1), asked.negative_image_embeds);
    Ok(Ask { negative_prompts, seeds, samples, wanted, negative_image_embeds, ..ask })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_media_type_counts() {
        let format = |value: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
            Format::of(&headers).map_err(|failure| failure.kind)
        };
        assert_eq!(Format::of(&HeaderMap::new()), Ok(Format::Json));
        assert_eq!(format("*/*"), Ok(Format::Json));
        assert_eq!(format("text/html, application/x-npy;q=0.9, */*"), Ok(Format::Npy));
        assert_eq!(format("Application/Octet-Stream"), Ok(Format::Safetensors));
        assert_eq!(format("application/x-ndjson, application/json"), Ok(Format::JsonLines));
        assert_eq!(format("text/html"), Err(Kind::NotAcceptable));
    }
}
