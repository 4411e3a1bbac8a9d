//! What a log says of the last step and the last evaluation, for a run that continues.

/// The last numbers of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Recalled {
    /// Loss of the last step, bits a token.
    pub loss_bits: Option<f64>,
    /// Last evaluation, in its own unit.
    pub eval_bits: Option<f64>,
}

/// Reads the lines of `metrics.jsonl`.
pub(crate) fn recall(metrics: &str) -> Recalled {
    let mut recalled = Recalled::default();
    for line in metrics.lines() {
        if line.contains(r#""event":"step""#) {
            recalled.loss_bits = number(line, r#""loss_bits":"#).or(recalled.loss_bits);
        } else if line.contains(r#""event":"eval""#) {
            recalled.eval_bits = number(line, r#""bits":"#).or(recalled.eval_bits);
        }
    }
    recalled
}

/// The number after a key of a compact object. The JSON parser may miss the last bit of an f64;
/// the standard library does not, and a continued run ends with the bits of an unbroken one.
fn number(line: &str, key: &str) -> Option<f64> {
    let value = &line[line.find(key)? + key.len()..];
    value[..value.find([',', '}'])?].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Event;

    fn step(loss_bits: f64) -> Event {
        Event::Step {
            step: 1,
            loss_bits,
            learning_rate: 0.1,
            grad_norm: 2.0,
            tokens: 8,
            seconds: 0.5,
            tokens_per_second: 16.0,
            resident_bytes: 1,
            eta_seconds: 2.0,
            loss_scale: None,
            skipped: None,
        }
    }

    #[test]
    fn the_last_numbers_come_back_to_the_bit() {
        let (loss, bits) = (7.0 / 3.0, 0.1 + 0.2);
        let eval = Event::Eval {
            step: 1,
            split: "validation".to_owned(),
            bits,
            unit: "byte",
            bits_per_token: 9.0,
            perplexity: 1.5,
            tokens: 3,
            seconds: 0.25,
        };
        let quoted = r#""event":"eval","bits":1,"#.to_owned();
        let sample = Event::Sample { step: 1, file: None, text: vec![quoted], seconds: 0.1 };
        let events = [step(5.0), eval, step(loss), sample];
        let lines = events.map(|e| serde_json::to_value(e.line()).unwrap().to_string() + "\n");
        let recalled = recall(&lines.concat());
        assert_eq!(recalled, Recalled { loss_bits: Some(loss), eval_bits: Some(bits) });
        assert_eq!(recall(""), Recalled::default());
    }
}
