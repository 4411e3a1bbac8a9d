//! Text that is no graph is refused with its line and the reason.

use aerogel_graph::text::parse;

const HEAD: &str = "\
graph v1
axis a = 4
axis b = 2
axis ab = 8
input %0 = x: f32[a b]
input %1 = ids: u32[a]
state %2 = w: f32[a b] parameter weight normal(0.02)
";

/// (line 8, what the message says)
const ERRORS: &[(&str, &str)] = &[
    ("nonsense", "wanted a declaration or a node"),
    ("axis a = 4", "axis `a` is declared twice"),
    ("axis c = many", "`many` is no extent"),
    ("axis c = 0", "an extent of 0 is no piece of 0"),
    ("axis c = 6 of 16", "an extent of 6 is no piece of 16"),
    ("axis c d = 4", "`c d` is no name"),
    ("axis c", "wanted `=` in `c`"),
    ("input %0 = y: f32[a]", "value `%0` is defined twice"),
    ("input 3 = y: f32[a]", "wanted a value such as `%0`, got `3`"),
    ("input %3 = x: f32[a]", "`x` is declared twice"),
    ("input %3 = y: f64[a]", "`f64` is no dtype"),
    ("input %3 = y: f32[nowhere]", "axis `nowhere` is not declared"),
    ("input %3 = y: f32", "wanted a type in brackets"),
    ("state %3 = v: f32[a] hero normal(1.0)", "wanted a role after the type"),
    ("state %3 = v: f32[a] parameter uniform(1.0)", "wanted constant(..) or normal(..)"),
    ("state %3 = v: f32[a] optimizer constant(0.0) twice", "`twice` is too much"),
    ("output y = %9", "value `%9` is not defined"),
    ("assign nobody = %0", "no state `nobody`"),
    ("assign w = %1", "`w` is f32[a=4 b=2], got u32[a=4]"),
    ("%3: f32[a=5 b=2] = map %0 {f=\"$0\"}", "axis `a` is 4 long, got `5`"),
    ("%3: f32[a=4] = conv %0", "conv: no such op; there are: einsum, map"),
    ("%3: f32[a=4] = einsum %0", "axis `b` is in one input only"),
    ("%3: f32[b=2 a=4 ab=8] = einsum %0", "output axis `ab` is in no input"),
    ("%3: f32[a=4] = reduce %0 {fold=sum over=[a]}", "reduce gives other types"),
    ("%3: f32[a=4] = reduce %0 {fold=mean over=[b]}", "fold is sum or max, got mean"),
    ("%3: f32[a=4] = reduce %0 {over=[b]}", "attribute `fold` is missing"),
    ("%3: f32[a=4] = reduce %0 {fold=sum over=[b] keep=true}", "takes no `keep=true`"),
    ("%3: f32[a=4 b=2] = map %0", "attribute `f` is missing"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$1\"}", "reads $1, and there are 1 inputs"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$0 +\"}", "at character 4: wanted an expression"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"coord(ab)\"}", "coord() of an axis that the output lacks"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$0\" cotangent=f8}", "`f8` is no dtype"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$0}", "`f` does not end"),
    ("%3: f32[a=4 b=2] = map %0 f=\"$0\"}", "value `f=\"$0\"}` is not defined"),
    ("%3: f32[a=4 b=2] = norm %0 {axis=a kind=batch eps=1e-5}", "kind is layer or rms, got batch"),
    ("%3: f32[a=4 b=2] = norm %0 {axis=a kind=rms eps=small}", "`eps=small` is malformed"),
    ("%3: f32[a=4 b=2] = gather %0 %1 {axis=a}", "axis `a` is in table and ids"),
    ("%3: f32[ab=8] = view %0 {kind=merge axes=[b a] into=ab}", "as neighbours in this order"),
    ("%3: f32[ab=8] = view %0 {kind=merge axes=[] into=ab}", "needs at least one axis"),
    ("%3: f32[ab=8 b=2] = view %0 {kind=rename axis=a into=ab}", "extents do not fit: 8 against 4"),
    ("%3: f32[a=4 b=2] = view %0 {kind=twist axis=a into=b}", "no such kind: twist"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$0\"} h.0", "`h.0` is neither a scope nor a phase"),
    ("%3: f32[a=4 b=2] = map %0 {f=\"$0\"} !sideways", "`sideways` is no phase"),
];

#[test]
fn errors_name_the_line_and_the_reason() {
    parse(HEAD).unwrap();
    for (line, reason) in ERRORS {
        let text = format!("{HEAD}{line}\n# the rest is not read\nnonsense");
        let error = parse(&text).expect_err(line);
        assert_eq!(error.line, 8, "{line}: {error}");
        assert!(error.message.contains(reason), "{line}: {error}");
        assert!(error.to_string().starts_with("line 8: "), "{error}");
    }
}

#[test]
fn a_text_needs_its_first_line() {
    for text in ["", "graph v2\n", "axis a = 4\n"] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), "line 1: the first line must be `graph v1`");
    }
}

/// Patterns are checked wherever they come from.
#[test]
fn senseless_patterns_are_refused() {
    let line = |pattern: &str| {
        format!(
            "graph v1\naxis t = 4\naxis s = 4\naxis d = 2\naxis v = 3\n\
             input %0 = q: f32[t d]\ninput %1 = k: f32[s d]\ninput %2 = v: f32[s v]\n\
             %3: f32[t=4 v=3], %4: f32[t=4] = attend %0 %1 %2 {{query=t key=s dim=d heads=[] \
             scale=1.0 pattern={pattern}}}\n"
        )
    };
    for good in ["full", "local(2)", "columns(2,1)", "union(block(2),per_head(causal,before))"] {
        parse(&line(good)).unwrap();
    }
    for bad in [
        "local(0)",
        "strided(0)",
        "block(0)",
        "summary(4,0)",
        "summary(4,5)",
        "columns_strict(0,0)",
        "per_head()",
        "per_head(causal,local(0))",
        "union(causal)",
        "union(causal,full,full)",
        "local(2,3)",
        "local(2,x)",
        "local(-1)",
        "full(now)",
        "dense",
        "local(2",
    ] {
        let error = parse(&line(bad)).expect_err(bad);
        assert!(error.message.contains("no such pattern"), "{bad}: {error}");
    }
}
