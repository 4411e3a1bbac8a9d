//! `[data]` and `[tokenizer]`.

use crate::choices::{BinFormat, DataKind, TokenizerKind};
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::recipe::{Data, Image, Source, Tokenizer};

/// Keys of `[data]` that only some kinds read.
const KIND_KEYS: &[&str] = &[
    "data.paths",
    "data.exclude",
    "data.field",
    "data.train",
    "data.test",
    "data.image",
    "data.format",
    "data.hint",
    "data.blake3",
];

/// Those of them that a kind reads.
fn keys_of(kind: DataKind) -> &'static [&'static str] {
    match kind {
        DataKind::Text => &["paths", "exclude", "test", "hint", "blake3"],
        DataKind::Jsonl | DataKind::Parquet => {
            &["paths", "exclude", "field", "test", "hint", "blake3"]
        }
        DataKind::Images => &["train", "test", "image", "hint", "blake3"],
        DataKind::Cifar10 => &["paths", "test", "hint", "blake3"],
        DataKind::Bin => &["paths", "test", "format", "hint", "blake3"],
        DataKind::CopyRows => &["image"],
    }
}

pub(crate) fn resolve(fields: &mut Fields) -> Result<Data, RecipeError> {
    let why = "it says where sequences come from";
    fields.require::<String>("data.kind", why, "kind = \"text\"")?;
    let kind: DataKind = fields.choice("data.kind");
    let read = keys_of(kind);
    for key in KIND_KEYS.iter().filter(|key| !read.contains(&&key["data.".len()..])) {
        let advice = format!("remove it, {} reads {}", kind.name(), read.join(", "));
        fields.refuse(&[key], &format!("with data.kind = \"{}\"", kind.name()), &advice)?;
    }
    let source = source(fields, kind)?;
    let test: Option<String> = fields.given("data.test");
    if let Some(test) = &test {
        let because = format!("beside data.test = \"{test}\", which is the test data");
        fields.refuse(&["data.test_fraction"], &because, "remove one of the two")?;
    }
    let (validation, test_fraction) = fractions(fields)?;
    Ok(Data {
        source,
        test,
        validation,
        test_fraction,
        split_seed: fields.get("data.split_seed"),
        hint: fields.given("data.hint"),
        blake3: checksum(fields)?,
    })
}

fn source(fields: &mut Fields, kind: DataKind) -> Result<Source, RecipeError> {
    let exclude = fields.get("data.exclude");
    Ok(match kind {
        DataKind::Text => Source::Text { paths: paths(fields, kind)?, exclude },
        DataKind::Jsonl => {
            Source::Jsonl { paths: paths(fields, kind)?, exclude, field: field(fields, kind)? }
        }
        DataKind::Parquet => {
            Source::Parquet { paths: paths(fields, kind)?, exclude, field: field(fields, kind)? }
        }
        DataKind::Images => Source::Images {
            train: fields.require(
                "data.train",
                "images are read from a folder",
                "train = \"data/images/train\"",
            )?,
            image: image(fields)?,
        },
        DataKind::Cifar10 => Source::Cifar10 { paths: paths(fields, kind)? },
        DataKind::Bin => Source::Bin {
            paths: paths(fields, kind)?,
            format: fields.choice::<BinFormat>("data.format"),
        },
        DataKind::CopyRows if fields.is_set("data.image") => {
            Source::CopyRows { image: image(fields)? }
        }
        DataKind::CopyRows => {
            let reason = "the task of 16 rows of 16 bytes";
            fields.derive("data.image", vec![16, 16, 1], "[16, 16, 1]", reason);
            Source::CopyRows { image: Image { height: 16, width: 16, channels: 1 } }
        }
    })
}

fn paths(fields: &Fields, kind: DataKind) -> Result<Vec<String>, RecipeError> {
    let why = format!("data.kind = \"{}\" reads files", kind.name());
    let paths: Vec<String> = fields.require("data.paths", &why, "paths = [\"data/*\"]")?;
    match paths.is_empty() {
        false => Ok(paths),
        true => Err(fields.clash(
            &["data.paths"],
            "data.paths = []".into(),
            "there would be nothing to train on",
            "name at least one file or glob, as in [\"data/*.txt\"]".into(),
        )),
    }
}

fn field(fields: &Fields, kind: DataKind) -> Result<String, RecipeError> {
    let why = format!("data.kind = \"{}\" takes the text out of one field", kind.name());
    fields.require("data.field", &why, "field = \"text\"")
}

fn image(fields: &Fields) -> Result<Image, RecipeError> {
    let why = "every image has to have one shape";
    let shape: Vec<u64> = fields.require("data.image", why, "image = [32, 32, 3]")?;
    let [height, width, channels] = [0, 1, 2].map(|i| shape[i] as usize);
    Ok(Image { height, width, channels })
}

fn fractions(fields: &Fields) -> Result<(f64, f64), RecipeError> {
    let (validation, test): (f64, f64) =
        (fields.get("data.validation"), fields.get("data.test_fraction"));
    if validation + test >= 1.0 {
        return Err(fields.clash(
            &["data.test_fraction", "data.validation"],
            format!("data.validation = {validation} and data.test_fraction = {test}"),
            "together they leave nothing to train on",
            "let them add up to less than 1".into(),
        ));
    }
    if validation + test == 0.0 {
        let because = "where data.validation and data.test_fraction are 0";
        fields.refuse(&["data.split_seed"], because, "remove it")?;
    }
    Ok((validation, test))
}

fn checksum(fields: &Fields) -> Result<Option<String>, RecipeError> {
    let Some(text) = fields.given::<String>("data.blake3") else { return Ok(None) };
    if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(Some(text));
    }
    Err(fields.clash(
        &["data.blake3"],
        format!("data.blake3 = \"{text}\""),
        "a BLAKE3 checksum is 64 lower-case hex digits",
        "copy it whole, or remove the key".into(),
    ))
}

pub(crate) fn tokenizer(fields: &mut Fields, data: &Data) -> Result<Tokenizer, RecipeError> {
    let kind = tokenizer_kind(fields, data)?;
    if kind == TokenizerKind::Bytes {
        let because = "with tokenizer.kind = \"bytes\", whose vocabulary is the 256 bytes";
        let advice = "remove it, or set tokenizer.kind = \"bpe\"";
        fields.refuse(&["tokenizer.vocab", "tokenizer.path"], because, advice)?;
        return Ok(Tokenizer { kind, vocab: Some(256), path: None });
    }
    let path: Option<String> = fields.given("tokenizer.path");
    let vocab = match (&path, data.kind()) {
        (_, DataKind::Bin) => {
            let why = "the shards hold tokens and do not say out of how many";
            Some(fields.require("tokenizer.vocab", why, "vocab = 50257")?)
        }
        (Some(_), _) => fields.given("tokenizer.vocab"),
        (None, _) => {
            let reason = "a usual size for a corpus of some hundred megabytes";
            Some(fields.derive("tokenizer.vocab", 8192, "8192", reason))
        }
    };
    Ok(Tokenizer { kind, vocab, path })
}

fn tokenizer_kind(fields: &mut Fields, data: &Data) -> Result<TokenizerKind, RecipeError> {
    let derived = match data.kind() {
        DataKind::Bin => (TokenizerKind::Bpe, "shards hold the tokens of a BPE"),
        _ => (TokenizerKind::Bytes, "every byte is a token, nothing has to be trained"),
    };
    if !fields.is_set("tokenizer.kind") {
        let shown = format!("\"{}\"", derived.0.name());
        fields.derive("tokenizer.kind", derived.0.name().to_string(), &shown, derived.1);
        return Ok(derived.0);
    }
    let kind = fields.choice("tokenizer.kind");
    match (kind, data.image()) {
        (TokenizerKind::Bpe, Some(_)) => Err(fields.clash(
            &["tokenizer.kind", "data.kind"],
            format!("tokenizer.kind = \"bpe\" and data.kind = \"{}\"", data.kind().name()),
            "an image is a sequence of bytes, without words to pair",
            "set tokenizer.kind = \"bytes\"".into(),
        )),
        _ => Ok(kind),
    }
}
