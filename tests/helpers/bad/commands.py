"""Command lines that cannot be carried out, each with what the one line about it has to name."""

from collections.abc import Iterator

from bad.place import MODELS, RUNS, SELECTIONS, WRITERS
from bad.row import Bad, rows_of
from bad.wrong import WRONG

SELECT = "select bert --data rows.jsonl "
TRAIN = "train bert --data rows.jsonl --selection selection.json -o new "
EVALUATE = "evaluate run --data rows.jsonl "
# Of settings, and so refused before anything is loaded.
SETTINGS = [
    *rows_of(
        SELECT,
        """
        --seed -1 => seed & -1
        --seed 1.5 => seed & 1.5
        --seed x => seed & x
        --seed 99999999999999999999999999 => seed
        --ratio 0 => ratio
        --ratio -0.5 => ratio & -0.5
        --ratio 1.0001 => ratio & 1.0001
        --ratio nan => ratio & nan
        --ratio inf => ratio & inf
        --ratio 1e308 => ratio
        --ratio half => ratio & half
        --ratio 0.01 => ratio & 0.01 & 4 layers
        --top-n 0 => top-n & 0
        --top-n -3 => top-n & -3
        --top-n 5 => top-n 5 & 4 layers
        --top-n 1e3 => top-n
        --top-n 99999999999999999999999999999 => top-n
        --top-n 2 --ratio 0.5 => one of
        --ratio 0.5 --threshold 0.1 => one of
        --budget-params 0 => budget-params
        --budget-params -5 => budget-params
        --budget-params 2X => budget-params & 2X
        --budget-params nan => budget-params
        --budget-params 1e999 => budget-params
        --budget-params 1 => budget & 1
        --threshold nan => threshold & nan
        --threshold inf => threshold & inf
        --threshold x => threshold & x
        --threshold 1e308 => threshold
        --objective time => objective & time
        --objective time=0 => objective & time=0
        --objective time=2 => objective
        --objective time=nan => objective
        --objective time=inf => objective
        --objective speed=0.5 => objective & speed
        --objective time=0.5=0.5 => objective
        --until-stable 0.5 => until-stable & 0.5
        --until-stable 1 => until-stable
        --until-stable nan => until-stable & nan
        --max-samples 7 => max-samples & 7
        --max-samples 0 => max-samples
        --max-samples -1 => max-samples
        --max-samples all => max-samples & all
        --max-samples 1e3 => max-samples
        --max-length 0 => max-length
        --max-length -1 => max-length
        --max-length 1 => max-length & 1
        --max-length x => max-length
        --probe-steps 0 => probe-steps
        --position middle => position & middle
        --position '' => position
        --position response-mean => response-mean
        --criterion ckaa => ckaa & cka
        --criterion '' => criterion
        --criterion cka@nowhere => nowhere
        --criterion '@' => criterion
        --criterion bottom: => criterion
        --criterion bottom:nope => nope
        --criterion '[bold]cka' => [bold]cka
        --criterion rules/gone.py:mine => rules/gone.py
        --criterion rules/other.py:mine => mine & rules/other.py
        --criterion rules/value.py:mine => mine
        --criterion rules/syntax.py:mine => syntax.py
        --criterion rules/imports.py:mine => no_such_package
        --criterion rules/raises.py:mine => rules/raises.py & KeyError
        --criterion rules/exits.py:mine => rules/exits.py
        --criterion rules/short.py:mine => short & 4
        --criterion rules/words.py:mine => words
        --criterion rules/nothing.py:mine => nothing.py
        --criterion rules/nan.py:mine => nan
        --criterion rules/infinite.py:mine => infinite
        --criterion rules/arguments.py:mine => arguments.py
        --criterion rules:mine => rules:mine
        --tower cellar => cellar & encoder
        --tower decoder => decoder
        --tower encoder+decoder => decoder
        --tower '' => tower
        --compat papr => papr & paper
        --compat paper --criterion fisher => criterion
        --compat paper --position last => position
        --compat paper --until-stable 0.9 => until-stable
        --task clasification => clasification & classification
        --task 3 => task
        --task regression --label-column text => text
        --task instruction => instruction
        --text-column nope => nope & text
        --label-column nope => nope
        --prompt-column nope => nope
        --image-column nope => nope
        --messages-column text => text
        --choices-column nope => nope
        --text-pair-column nope => nope
        --split nope --data data/folder => data/folder
        --device cuda => cuda
        --device cuda:7 => cuda
        --device gpu => gpu
        --device '' => device
        --device meta => meta
        --device cpu:x => cpu:x
        --device mps => mps
        --dtype float99 => float99 & float32
        --dtype int8 => int8
        --dtype bits8 => bits8
        --dtype load => load
        --dtype '' => dtype
        --rank 0 --budget-params 2k => rank
        --rank -8 --budget-params 2k => rank
        --rank 99999999999 --budget-params 2k => rank
        --method nope --budget-params 2k => nope
        --target-modules '[' --budget-params 2k => [
        --target-modules nope --budget-params 2k => nope
        --target-modules '(?P<a' --budget-params 2k => (?P<a
        --target-modules '*' --budget-params 2k => *
        -o exists.json => exists.json
        -o exists => exists
        -o file/new.json => file
        -o rows.jsonl => rows.jsonl
        --picture new.gif => new.gif & .png
        --picture new => new
        --picture exists.png => exists.png
        --picture file/new.png => file
        -o new.json --picture new.json => new.json
        --config nowhere.yaml => nowhere.yaml
        --config flags-unknown.yaml => dta & data
        --config flags-list.yaml => flags-list.yaml
        --config flags-type.yaml => max-samples & many
        --config flags-nested.yaml => max
        --config flags-trust.yaml => trust_remote_code
        --config exists => exists
        --config recipes/binary.yaml => binary.yaml
        --config recipes/tag.yaml => tag.yaml
        --no-such-flag => no-such-flag
        --max-sample 8 => max-sample
        surplus => surplus
        --stream --device cuda => cuda
        --revision => revision
        --data => data
        """,
    ),
    *rows_of(
        TRAIN,
        """
        --epochs 0 => epochs
        --epochs -1 => epochs
        --epochs nan => epochs & nan
        --epochs inf => epochs & inf
        --epochs 1e24 => epochs
        --epochs x => epochs & x
        --learning-rate 0 => learning-rate
        --learning-rate -1e-3 => learning-rate
        --learning-rate nan => learning-rate
        --learning-rate inf => learning-rate
        --learning-rate 1e308 => learning-rate
        --learning-rate fast => learning-rate
        --batch-size 0 => batch-size
        --batch-size -4 => batch-size
        --batch-size 1.5 => batch-size
        --gradient-accumulation 0 => gradient-accumulation
        --gradient-accumulation x => gradient-accumulation
        --max-samples 0 => max-samples
        --rank 0 => rank
        --rank 1.5 => rank
        --rank 100000000000 => rank
        --alpha 0 => alpha
        --alpha nan => alpha
        --alpha inf => alpha
        --alpha 1e308 => alpha
        --alpha -1 => alpha
        --dropout 1 => dropout
        --dropout -0.1 => dropout
        --dropout nan => dropout
        --warmup-ratio 1 => warmup-ratio
        --warmup-ratio nan => warmup-ratio
        --weight-decay -1 => weight-decay
        --weight-decay nan => weight-decay
        --weight-decay inf => weight-decay
        --weight-decay 1e308 => weight-decay
        --scheduler triangular => triangular & linear
        --scheduler polynomial => polynomial
        --precision fp8 => fp8
        --precision 16 => 16
        --method lorra => lorra & lora
        --method '' => method
        --method poly => poly
        --method loftq => loftq
        --method full --rank-of 1=4 => full
        --method-option nope => nope
        --method-option =3 => =3
        --method-option r= => r
        --method-option rr=3 => rr
        --method-option r=three => three
        --method-option r=-3 => r
        --method-option init_lora_weights=nonsense => nonsense
        --method-option use_dora=maybe => use_dora
        --method-option target_modules=[ => target_modules
        --method-option layers_to_transform=[1] => layers_to_transform
        --method-option modules_to_save=[nope] => nope
        --method-option lora_alpha=[] => lora_alpha
        --method-option bias=sideways => bias
        --method-option rank_pattern=7 => rank_pattern
        --rank-of nope=4 => nope
        --rank-of attention=0 => attention
        --rank-of attention=-1 => attention
        --rank-of attention=x => attention
        --rank-of 0=4 => 0
        --rank-of 99=4 => 99
        --rank-of attention => attention
        --target-modules '[' => [
        --target-modules nope => nope
        --target-modules '' => target
        --target-modules query,nope => nope
        --target-modules 'classifier' => classifier
        --target-modules '(' => (
        --target-modules 'LayerNorm' => LayerNorm
        --target-modules all_linear => all_linear & all-linear
        --activation-cache file => file
        --activation-cache '' => activation-cache
        --selection nowhere.json => nowhere.json
        --selection rows.jsonl => rows.jsonl
        --selection data/pipe.json => pipe.json
        --selection exists => exists
        --selection '' => selection
        -o exists => exists
        -o file => file
        -o file/new => file
        --resume -o exists => exists
        --merge --method-option target_modules=7 => target_modules
        --seed -1 => seed
        --data nowhere.jsonl => nowhere.jsonl
        --max-length 1 => max-length & 1
        --data data/few.jsonl => few.jsonl & 8
        --task text --data data/columns.jsonl => columns.jsonl
        --data chat.jsonl => write text
        --no-such-flag => no-such-flag
        --stream => stream
        """,
    ),
    *rows_of(
        EVALUATE,
        """
        --max-samples 0 => max-samples
        --max-samples x => max-samples
        --exact-match -1 => exact-match
        --exact-match 5 => exact-match
        --max-new-tokens 0 => max-new-tokens
        --seed -1 => seed
        --device cuda => cuda
        --device gpu => gpu
        --data nowhere.jsonl => nowhere.jsonl
        --data data/new-label.jsonl => new-label.jsonl & label
        --data data/no-label.jsonl => no-label.jsonl & label
        --data data/empty.jsonl => empty.jsonl
        --data data/null-text.jsonl => null-text.jsonl & row 25
        --data data/number-text.jsonl => number-text.jsonl
        --data chat.jsonl => chat.jsonl
        -o exists.json => exists.json
        -o file/new.json => file
        --split '' --data data/saved => --split & empty
        --config flags-unknown.yaml => dta
        """,
    ),
    *rows_of(
        "inspect bert ",
        """
        --plan --memory 24 => memory & 24
        --plan --devices 0 => devices & 0
        --plan --devices 2 --sharding zero2 => sharding & zero2
        --plan --sharding fsdp => sharding & devices
        --plan --devices 3 --batch-size 8 => batch-size 8 & 3
        --plan --devices 2 --sharding fsdp --quantization 4bit => sharding fsdp & packed
        --plan --device-name 'RTX 1' => RTX 1 & T4
        --plan --memory 1GB --device-name T4 => memory & device-name
        --rank 0 => rank
        --rank x => rank
        --rank -1 => rank
        --target-modules '[' => [
        --target-modules nope => nope
        --plan --batch-size 0 => batch-size
        --plan --tokens 0 => tokens
        --plan --tokens -5 => tokens
        --plan --tokens 99999999999999999999 => tokens
        --plan --batch-size 99999999999999999999 => batch-size
        --plan --rank 99999999999 => rank
        --selection nowhere.json => nowhere.json
        --selection rows.jsonl => rows.jsonl
        --revision => revision
        --data nowhere.jsonl => nowhere.jsonl
        --data rows.jsonl --show 0 => show
        --task text => data
        --max-length 9 => data
        --plan --quantization 3bit => 3bit
        --data data/empty.jsonl => empty.jsonl
        """,
    ),
    *rows_of(
        "benchmark ",
        """
        llama --tasks '' => tasks
        llama --tasks ',' => tasks
        llama --tasks gsm8k --data nowhere.jsonl => nowhere.jsonl
        llama --tasks gsm8k --data nope=rows.jsonl => nope
        llama --tasks gsm8k --data rows.jsonl => rows.jsonl
        llama --tasks gsm8k --data data/empty.jsonl => empty.jsonl
        llama --tasks gsm8k --data data/cut.jsonl => cut.jsonl
        llama --tasks gsm8k,mbpp --data rows.jsonl => rows.jsonl
        llama --tasks gsm8k --limit 0 => limit
        llama --tasks gsm8k --batch-size 0 => batch-size
        llama --tasks gsm8k --max-new-tokens 0 => max-new-tokens
        llama --tasks humaneval => allow-code-execution
        llama --tasks mbpp --data rows.jsonl => allow-code-execution
        llama --tasks mine --task-path nowhere => nowhere
        llama --tasks mine --task-path file => file
        llama --tasks mine --task-path tasks => tasks
        llama --tasks gsm8k --data chat.jsonl -o exists.json => exists.json
        llama --tasks gsm8k --base => base
        run --tasks gsm8k => classification
        ./nowhere --tasks gsm8k --data sums.jsonl => ./nowhere
        bert --tasks gsm8k --data sums.jsonl => bert
        llama --tasks gsm8k --data chat.jsonl => question
        llama --tasks gsm8k --data sums.jsonl --device gpu => gpu
        """,
    ),
    *rows_of(
        "",
        """
        nope => nope
        selct bert => selct
        --nope => nope
        select => model
        select bert => data
        train bert => data
        evaluate => run
        evaluate run => data
        run => recipe
        compare => recipe
        sweep => recipe
        oracle => recipe
        recipes nope => nope & known
        schema nope => nope & selection
        schema => kind
        demo --nope => nope
        demo -o exists => exists
        demo -o file/new => file
        criteria --nope => nope
        """,
    ),
]


# Of damaged models, those of which not even an empty one can be built.
BUILT = ("config", "type", "layers", "hidden", "heads", "architectures", "code")


def _of_models() -> Iterator[Bad]:
    """Every damaged model, asked for by the command that meets the damage first, and by another."""
    for name in MODELS:
        yield Bad(f"select models/{name} --data rows.jsonl", (name,))
        if name.startswith(BUILT) and name not in ("layers-one-more", "architectures-unknown"):
            yield Bad(f"inspect models/{name}", (name,))
        if name.startswith(("weights", "tokenizer")):
            yield Bad(f"train models/{name} --data rows.jsonl --selection selection.json -o new", (name,))
    for name in WRITERS:
        yield Bad(f"select models/{name} --data chat.jsonl", (name,))
    yield from rows_of(
        "select ",
        """
        nowhere/at/all --data rows.jsonl => nowhere/at/all
        ./nowhere --data rows.jsonl => ./nowhere
        '' --data rows.jsonl => model
        'a [/x]' --data rows.jsonl => a [/x]
        exists --data rows.jsonl => exists & config.json
        file --data rows.jsonl => file
        rows.jsonl --data rows.jsonl => rows.jsonl
        nowhere.gguf --data chat.jsonl => nowhere.gguf
        noise.gguf --data chat.jsonl => noise.gguf
        empty.gguf --data chat.jsonl => empty.gguf
        header.gguf --data chat.jsonl => header.gguf
        data/pipe.jsonl --data rows.jsonl => data/pipe.jsonl
        no-such-user/no-such-model --data rows.jsonl => no-such-user/no-such-model
        'white space' --data rows.jsonl => white space
        'a/b/c/../../x$a^$' --data rows.jsonl => x$a^$
        bert --data chat.jsonl => bert
        t5 --data chat.jsonl --compat paper => compat
        llama --data chat.jsonl --chat-template template.jinja => chat-template
        llama --data chat.jsonl --position first --compat paper => position
        """,
    )


def _of_data() -> Iterator[Bad]:
    yield from rows_of(
        "select bert --data ",
        """
        data/empty.jsonl => empty.jsonl
        data/blank.jsonl => blank.jsonl
        data/cut.jsonl => cut.jsonl & line 2
        data/lists.jsonl => lists.jsonl & line 1
        data/numbers.jsonl => numbers.jsonl
        data/deep.jsonl => deep.jsonl
        data/digits.jsonl => digits.jsonl
        data/nan.json => nan.json
        data/empty.json => empty.json
        data/number.json => number.json
        data/text.json => text.json
        data/none.json => none.json
        data/object.json => object.json
        data/two-lists.json => two-lists.json
        data/mixed.json => mixed.json
        data/cut.json => cut.json
        data/deep.json => deep.json
        data/empty.csv => empty.csv
        data/header.csv => header.csv
        data/ragged.csv => ragged.csv & 3
        data/long.csv => long.csv & 2
        data/quote.csv => quote.csv
        data/empty.parquet => empty.parquet
        data/text.parquet => text.parquet
        data/noise.parquet => noise.parquet
        data/notes.txt => notes.txt & .jsonl
        data/table.xlsx => table.xlsx
        data/pickle.pkl => pickle.pkl
        data/latin.jsonl => latin.jsonl & UTF-8
        data/utf16.csv => utf16.csv
        data/columns.jsonl => columns.jsonl & text
        data/few.jsonl => few.jsonl & 3
        data/one-class.jsonl => one-class.jsonl
        data/null-text.jsonl => null-text.jsonl & row 25
        data/null-label.jsonl => null-label.jsonl & row 25
        data/missing-text.jsonl => missing-text.jsonl & row 25
        data/empty-text.jsonl => empty-text.jsonl & row 25
        data/list-label.jsonl => list-label.jsonl
        data/dict-label.jsonl => dict-label.jsonl
        data/dict-text.jsonl => dict-text.jsonl & row
        data/list-text.jsonl => list-text.jsonl & row
        data/number-text.jsonl => number-text.jsonl & row
        data/surrogate.jsonl => surrogate.jsonl & row
        data/many-labels.jsonl => many-labels.jsonl & task
        data/infinite-label.jsonl => infinite-label.jsonl
        data/huge-label.jsonl => huge-label.jsonl
        data/image-gone.jsonl => image
        data/image-number.jsonl => image
        data/image-null.jsonl => image-null.jsonl
        data/folder => data/folder
        data/saved => data/saved
        data/pipe.jsonl => pipe.jsonl
        data/pipe.json => pipe.json
        data/pipe.csv => pipe.csv
        data/pipe.parquet => pipe.parquet
        data/image-pipe.jsonl => image
        rows.jsonl --config data/pipe.yaml => pipe.yaml
        data/gone.jsonl => gone.jsonl
        data => data
        nowhere.jsonl => nowhere.jsonl
        ./nowhere => ./nowhere
        no-such-user/no-such-data => no-such-user/no-such-data
        no-such-data:part => no-such-data
        '' => data
        'a [/x].jsonl' => a [/x].jsonl
        rows.jsonl/more => rows.jsonl/more
        /dev/null => /dev/null
        /dev/zero => /dev/zero
        https://example.org/rows.jsonl => https://example.org/rows.jsonl
        rows.JSON => rows.JSON
        rows.jsonl,plain.jsonl => rows.jsonl,plain.jsonl
        numbers.jsonl --task classification --label-column nope => nope
        plain.jsonl --task regression => plain.jsonl
        rows.jsonl --text-column label => label
        rows.jsonl --text-column text --label-column text => text
        """,
    )
    yield from rows_of(
        "select llama --data ",
        """
        data/no-answer.jsonl => no-answer.jsonl & row
        data/messages-text.jsonl => messages-text.jsonl & row
        data/messages-number.jsonl => messages-number.jsonl & row
        data/messages-empty.jsonl => messages-empty.jsonl & row
        data/messages-null.jsonl => messages-null.jsonl & row
        data/messages-roleless.jsonl => messages-roleless.jsonl & row
        data/messages-role-number.jsonl => messages-role-number.jsonl & row
        data/messages-content-number.jsonl => messages-content-number.jsonl & row
        data/messages-blank.jsonl => messages-blank.jsonl & row
        data/empty-response.jsonl => empty-response.jsonl & row 17
        data/null-response.jsonl => null-response.jsonl & row 17
        data/two-readings.jsonl => two-readings.jsonl
        data/choices.jsonl => choices.jsonl & row
        data/choices-index.jsonl => choices-index.jsonl & row
        data/choices-text.jsonl => choices-text.jsonl & row
        data/choices-none.jsonl => choices-none.jsonl & row
        chat.jsonl --max-length 1 => chat.jsonl & 1
        chat.jsonl --chat-template nowhere.jinja => nowhere.jinja
        chat.jsonl --chat-template template-latin.jinja => template-latin.jinja
        chat.jsonl --chat-template exists => exists
        chat.jsonl --chat-template data/pipe.jinja => pipe.jinja
        chat.jsonl --prompt-column nope => nope
        chat.jsonl --response-column prompt --prompt-column prompt => prompt
        chat.jsonl --messages-column prompt => prompt
        data/image-cut.jsonl => image
        data/image-text.jsonl => image
        data/image-bytes.jsonl => image
        data/image-bomb.jsonl => image
        """,
    )


def _of_records() -> Iterator[Bad]:
    for name in SELECTIONS:
        what = "12 layers" if name == "number-of-another-model" else f"{name}.json"
        yield Bad(f"train bert --data rows.jsonl --selection selections/{name}.json -o new", (what,))
    for name in list(SELECTIONS)[::3]:
        yield Bad(f"inspect bert --selection selections/{name}.json", (f"{name}.json",))
    named = {"record-source-elsewhere": "./nowhere", "record-columns-other": "sentence"}
    for name in RUNS:
        yield Bad(f"evaluate runs/{name} --data rows.jsonl", (named.get(name, name),))
    yield from rows_of(
        "evaluate ",
        """
        nowhere --data rows.jsonl => nowhere
        bert --data rows.jsonl => bert
        file --data rows.jsonl => file
        exists --data rows.jsonl => exists
        rows.jsonl --data rows.jsonl => rows.jsonl
        '' --data rows.jsonl => RUN & empty
        'a [/x]' --data rows.jsonl => a [/x]
        """,
    )


def _of_predictions() -> Iterator[Bad]:
    named = {"record-source-elsewhere": "./nowhere", "record-columns-other": "sentence"}
    for name in list(RUNS)[::3]:
        yield Bad(f"predict runs/{name} --data rows.jsonl", (named.get(name, name),))
    yield from rows_of(
        "predict ",
        """
        nowhere --data rows.jsonl => nowhere
        run => --data
        run --data nowhere.jsonl => nowhere.jsonl
        run --data rows.jsonl -o new.json => .csv
        run --data rows.jsonl -o preds.xlsx => .csv
        run --data recipe.yaml => recipe.yaml
        run --data rows.jsonl --max-new-tokens 0 => max-new-tokens
        run --data rows.jsonl --keep id => id & has: & text
        run --data rows.jsonl --keep text,nope => nope & text
        """,
    )
    yield Bad("evaluate run --data rows.jsonl --wrong -1", ("wrong",))
    yield from rows_of(
        "push ",
        """
        run => REPO
        nowhere me/x => nowhere
        bert me/x => bert
        run me/x => --base-model
        run me/x --base-model org/bert --evaluation nowhere.json => nowhere.json
        run me/x --base-model org/bert --evaluation selection.json => selection.json
        run me/x --base-model org/bert --dry-run => --output
        run me/x --base-model org/bert --dry-run -o exists => exists
        run 'a b c' --base-model org/bert => a b c
        """,
    )
    yield from rows_of(
        "train bert --data rows.jsonl -o new ",
        """
        --hold-back 0 => hold-back & 0
        --hold-back 1 => hold-back & 1
        --hold-back half => hold-back & half
        --hold-back 0.001 => rows.jsonl & 0.001
        --hold-back 0.9 => at least 8
        --hold-back 0.2 --eval-data rows.jsonl => hold-back & eval-data
        --selection selection.json --ratio 0.5 => one of them
        --ratio 0 => ratio & 0
        --ratio 2 => ratio & 2
        --ratio 0.5 --patience 2 => hold-back & eval-data
        --ratio 0.5 --eval-data nowhere.jsonl => nowhere.jsonl
        --ratio 0.5 --eval-data rows.jsonl --patience 0 => patience & 0
        --ratio 0.5 --report-to tensorbord => tensorboard
        --ratio 0.5 --report-to mlflow => pip install mlflow
        """,
    )


def _of_exports() -> Iterator[Bad]:
    for name in list(SELECTIONS)[1::3]:
        what = "12 layers" if name == "number-of-another-model" else f"{name}.json"
        yield Bad(f"export selections/{name}.json --to trl", (what,))
    for name in ("list", "text", "tabs", "colon", "deep", "anchors", "tag", "twice", "latin", "binary", "folder"):
        yield Bad(f"export selection.json --to axolotl --into recipes/{name}.yaml", (f"{name}.yaml",))
    yield from rows_of(
        "export ",
        """
        selection.json => --to
        selection.json --to torchtune => torchtune
        selection.json --to axolotel => axolotl
        nowhere.json --to trl => nowhere.json
        llama --to trl => llama & selection
        rows.jsonl --to trl => rows.jsonl
        selection.json --to trl --model nowhere => nowhere
        selection.json --to trl --model llama => bert.encoder.layer & LlamaForCausalLM
        selection.json --to trl --into nowhere.yaml => nowhere.yaml
        selection.json --to peft --into recipe.yaml => Python & --into
        selection.json --to trl --into recipe.yaml => recipe.yaml & one a line
        selection.json --to trl -o exists.json => exists.json
        selection.json --to trl -o nowhere/else/x.yaml --rank 0 => rank & 0
        selection.json --to trl --alpha 0 => alpha & 0
        selection.json --to trl --alpha 7.5 => alpha & 7.5
        selection.json --to trl --dropout 1 => dropout & 1
        selection.json --to trl --target-modules '' => target-modules
        selection.json --to trl --target-modules nothing => nothing
        selection.json --to trl --target-modules '(' => (
        selection.json --to trl --rank-of mlp => mlp
        selection.json --to trl --rank-of mlp=0 => mlp
        selection.json --to trl --rank-of heads=4 => heads
        selection.json --to nemo --target-modules all-linear --rank-of mlp=2 => one rank & axolotl
        run --to serving => --output
        run --to serving -o served => classifier & --merge
        nowhere --to serving -o served => nowhere
        bert --to serving -o served => bert
        selection.json --to serving -o served => selection.json
        run --to serving -o exists => exists
        """,
    )


def _of_recipes() -> Iterator[Bad]:
    for name in (
        "empty",
        "list",
        "text",
        "number",
        "tabs",
        "colon",
        "deep",
        "anchors",
        "tag",
        "twice",
        "control",
        "date",
        "latin",
        "binary",
        "folder",
    ):
        yield Bad(f"run recipes/{name}.yaml", (f"{name}.yaml",))
    yield from rows_of(
        "sweep recipe.yaml ",
        """
        --ranks 8 => --ranks & 2,4,8,16
        --ranks 4,4 => --ranks & 2,4,8,16
        --ranks 0,4 => --ranks & 2,4,8,16
        --ranks 4,x => --ranks & 2,4,8,16
        --ranks 2,4 --budget 0.1 => --budget & trainings
        --ranks 2,4 --set train.method=full => --ranks & rank
        """,
    )
    for name in ("list", "tag", "latin"):
        for command in ("sweep", "compare", "oracle"):
            yield Bad(f"{command} recipes/{name}.yaml", (f"{name}.yaml",))
    yield from rows_of(
        "run recipe.yaml --set ",
        """
        nope => nope
        =3 => =3
        model => model
        'train.epochs=[' => train.epochs
        'train.epochs={a' => train.epochs
        train.epochs=x => epochs
        train.epochs=nan => epochs
        train.epochs=.inf => epochs
        train.epochs=1e24 => epochs
        train.epoch=3 => epoch & epochs
        train=3 => train
        train.learning_rate.x=3 => train.learning_rate.x
        a.b=3 => a
        model.nmae=x => nmae & name
        model.name=7 => name
        model.name=./nowhere => ./nowhere
        model.trust_remote_code=maybe => trust_remote_code
        model.device=gpu => gpu
        model.dtype=float99 => float99
        data.data=nowhere.jsonl => nowhere.jsonl
        data.data=[a] => data
        data.split=3 => split
        data.label_column=nope => nope
        data.task=poetry => poetry
        output= => output
        output=7 => output
        output=file => file
        output=file/new => file
        output=exists => exists
        seed=-1 => seed
        seed=x => seed
        variants=[nope] => nope
        'variants=[selected,selected]' => variants
        'variants=[top-0]' => top-0
        'variants=[top-9]' => top-9
        'variants=[mine=01]' => mine=01
        'variants=[mine=0000]' => mine=0000
        'variants=[all=0110]' => all
        variants=selected => variants
        'variants=[3]' => variants
        select.top_n=9 => top-n 9
        select.ratio=2 => ratio
        select.criterion=ckaa => ckaa
        select.position=nope => nope
        select.seed=3 => seed
        select.tower=cellar => cellar
        select.criterion=rules/gone.py:mine => rules/gone.py
        select.max_samples=1 => max_samples
        train.method=lorra => lorra
        train.rank=0 => rank
        train.scheduler=nope => nope
        train.method_options=7 => method_options
        'train.method_options={rr: 3}' => rr
        'train.method_options={r: three}' => three
        'train.method_options={layers_to_transform: [1]}' => layers_to_transform
        'train.ranks={nope: 4}' => nope
        'train.ranks={attention: 0}' => attention
        "train.target_modules='['" => [
        train.target_modules=nope => nope
        train.precision=fp8 => fp8
        train.batch_size=0 => batch_size
        evaluate.data=nowhere.jsonl => nowhere.jsonl
        evaluate.data=data/new-label.jsonl => new-label.jsonl
        evaluate.data=chat.jsonl => chat.jsonl
        evaluate.data=data/few.jsonl => few.jsonl
        'evaluate.data={a: nowhere.jsonl}' => nowhere.jsonl
        'evaluate.metrics=[nope]' => nope
        evaluate.metrics=accuracy => metrics
        'evaluate.metrics=[]' => metrics
        evaluate.exact_match=-1 => exact_match
        evaluate.exact_match=4 => exact_match
        evaluate.max_samples=0 => max_samples
        compare.seeds=0 => seeds
        compare.nope=1 => nope
        about=3 => about
        smoke.model_type=nope --smoke => nope
        smoke.classes=1 => classes
        """,
    )
    yield from rows_of(
        "run ",
        """
        nowhere.yaml => nowhere.yaml
        data/pipe.yaml => pipe.yaml
        nope => nope
        '' => recipe
        recipe.yaml --jobs 0 => jobs
        recipe.yaml --jobs -2 => jobs
        recipe.yaml --jobs x => jobs
        recipe.yaml -o exists => exists
        recipe.yaml -o file => file
        recipe.yaml -o file/new => file
        recipe.yaml --threads 0 => threads
        recipe.yaml --on slurm => --on & ray://HOST:PORT
        recipe.yaml --on ray://127.0.0.1:x => --on & ray://HOST:PORT
        recipe.yaml --on ray --gpus -1 => gpus
        rows.jsonl => rows.jsonl
        bert => bert
        figure-nope => figure-nope
        recipe.yaml --smoke => smoke
        """,
    )
    yield from rows_of(
        "",
        """
        sweep recipe.yaml --sizes 0 => sizes
        sweep recipe.yaml --sizes 9 => sizes & 9
        sweep recipe.yaml --sizes 1,,2 => sizes
        sweep recipe.yaml --sizes x => sizes
        sweep recipe.yaml --sizes '' => sizes
        sweep recipe.yaml --jobs 0 => jobs
        sweep recipe.yaml -o exists => exists
        compare recipe.yaml --sizes 9 => 9
        compare recipe.yaml --sizes 0 => sizes
        compare recipe.yaml --sizes x => sizes
        compare recipe.yaml --sizes '[' => sizes
        compare recipe.yaml --sizes 2,2 => sizes
        compare recipe.yaml --criteria nope => nope
        compare recipe.yaml --criteria '[' => criteria
        compare recipe.yaml --criteria cka,cka => cka
        compare recipe.yaml --criteria rules/gone.py:mine => rules/gone.py
        compare recipe.yaml --seeds 0 => seeds
        compare recipe.yaml --seeds x => seeds
        compare recipe.yaml --methods nope => nope
        compare recipe.yaml --methods '' => methods
        compare recipe.yaml --jobs 0 => jobs
        compare recipe.yaml -o exists => exists
        compare recipe.yaml -o file/new => file
        compare recipe.yaml --set compare.retention=nowhere.jsonl => nowhere.jsonl
        compare recipe.yaml --set compare.retention=wrong/no-text.jsonl => compare.retention & no-text.jsonl & a text
        compare recipe.yaml --set compare.retention=wrong/seven.jsonl => seven.jsonl & 7 samples
        compare recipe.yaml --set compare.learning_rates=[0] => learning_rates
        compare recipe.yaml --set compare.learning_rates=[nan] => learning_rates
        compare recipe.yaml --set compare.random=0 => random
        compare recipe.yaml --set compare.probe_share=2 => probe_share
        compare recipe.yaml --race => compare.race & seeds
        oracle recipe.yaml --size 0 => size
        oracle recipe.yaml --size 4 => size
        oracle recipe.yaml --size 9 => size
        oracle recipe.yaml --size x => size
        oracle recipe.yaml --sample 0 => sample
        oracle recipe.yaml --sample -2 => sample
        oracle recipe.yaml --criteria nope => nope
        oracle recipe.yaml --seeds 0 => seeds
        oracle recipe.yaml -o exists => exists
        """,
    )


INSPECT_DATA = """
        --task text
        --text-column text
        --text-pair-column text
        --label-column label
        --prompt-column text
        --response-column text
        --messages-column text
        --image-column text
        --choices-column text
        --against rows.jsonl
        --split test
        --max-length 5
        --chat-template template.jinja
        --source-language de_DE
        --target-language de_DE
        --show 2
"""
QUIET = {
    "inspect bert": "",
    "advise bert": "--data rows.jsonl",
    "select bert": "--data rows.jsonl",
    "train bert": "--data rows.jsonl --ratio 0.5 -o new",
    "evaluate run": "--data rows.jsonl",
    "predict run": "--data rows.jsonl",
    "export selection.json": "--to trl",
    "doctor run": "",
    "prune run": "--params 100 -o new",
    "push run me/x": "",
    "benchmark bert": "--tasks gsm8k",
    "run recipe.yaml": "",
    "sweep recipe.yaml": "",
    "compare recipe.yaml": "",
    "oracle recipe.yaml": "",
    "criteria": "",
    "demo": "",
}


def _of_flags() -> Iterator[Bad]:
    """Flags that have no effect, which the message names first."""
    for command, rest in QUIET.items():
        yield Bad(f"{command} {rest} --json --quiet", ("--quiet has no effect", "--json"))
    for line in INSPECT_DATA.strip().splitlines():
        yield Bad(f"inspect bert {line.strip()}", (f"{line.split()[0]} has no effect", "--data"))
    for command in ("inspect", "advise", "select", "train"):
        yield from rows_of(
            f"{command} bert --data rows.jsonl {'--ratio 0.5 -o new ' if command == 'train' else ''}",
            """
            --revision main => --revision has no effect & bert
            --split train => --split has no effect & rows.jsonl
            --split validation => --split has no effect & rows.jsonl
            """,
        )
    yield from rows_of(
        "sweep recipe.yaml ",
        """
        --sizes 1 --ranks 2,4 => --sizes has no effect & --ranks
        --seeds 2 => --seeds has no effect & --ranks
        --budget 2 => --budget has no effect & --ranks
        """,
    )
    yield from rows_of(
        "inspect bert ",
        """
        --batch-size 4 => --batch-size has no effect & --plan
        --tokens 4 => --tokens has no effect & --plan
        --gradient-checkpointing => --gradient-checkpointing has no effect & --plan
        --strategy freezing => --strategy has no effect & --plan
        --epochs 4 => --epochs has no effect & --plan
        --epochs 4 --plan => --epochs has no effect & static
        --dtype bfloat16 => --dtype has no effect & --plan
        --quantization 4bit => --quantization has no effect & --plan
        --memory 1GB => --memory has no effect & --plan
        --device-name T4 => --device-name has no effect & --plan
        --devices 2 => --devices has no effect & --plan
        --devices 2 --sharding ddp => --sharding has no effect & --plan
        """,
    )
    for command in ("train bert --data rows.jsonl --ratio 0.5 -o new ", "advise bert --data rows.jsonl "):
        yield from rows_of(
            command,
            """
            --method full --rank 4 => --rank has no effect & full
            --method full --alpha 4 => --alpha has no effect & full
            --method full --dropout 0.1 => --dropout has no effect & full
            --method full --target-modules query => --target-modules has no effect & full
            --method full --rank-of mlp=4 => --rank-of has no effect & full
            --method full --method-option r=4 => --method-option has no effect & full
            --method ia3 --rank 8 => --rank has no effect & ia3
            --method ia3 --rank-of mlp=4 => --rank-of has no effect & ia3
            --method adalora --alpha 8 => --alpha has no effect & adalora
            --method ia3 --dropout 0.1 => --dropout has no effect & ia3
            --scheduler constant --warmup-ratio 0.1 => --warmup-ratio has no effect & constant
            """,
        )
    yield from rows_of(
        "train bert --data rows.jsonl -o new ",
        """
        --ratio 0.5 --eval-split test => --eval-split has no effect & --eval-data
        --ratio 0.5 --eval-data rows.jsonl --eval-split validation => --eval-split has no effect & rows.jsonl
        --ratio 0.5 --patience 2 => --patience has no effect & --eval-data
        --selection modules.json --rank 8 => --rank has no effect & modules.json
        --selection modules.json --rank-of mlp=4 => --rank-of has no effect & modules.json
        --selection modules.json --target-modules query => --target-modules has no effect & modules.json
        --selection lowest.json --activation-cache cache => --activation-cache has no effect & layer 0
        --ratio 1 --activation-cache off => --activation-cache has no effect & layer 0
        --activation-cache off => --activation-cache has no effect & layer 0
        --layers 0 --activation-cache off => --activation-cache has no effect & layer 0
        --layers 0-1,3 --activation-cache cache => --activation-cache has no effect & layer 0
        --layers first:2 --activation-cache off => --activation-cache has no effect & layer 0
        --layers every:2 --activation-cache off => --activation-cache has no effect & layer 0
        --strategy skipping:0.5 => --strategy has no effect & carries adapters
        --ratio 1 --strategy skipping:1 => --strategy has no effect & carries adapters
        --layers 3 --strategy freezing => --strategy has no effect & one layer
        --layers last:1 --strategy converging => --strategy has no effect & one layer
        --sharding fsdp => --sharding fsdp & torchrun
        --sharding zero3 => --sharding & fsdp
        --layers 2 --strategy rotating:1@1 => --strategy has no effect & one layer
        --layers 1,3 --strategy rotating:2@3 => --strategy has no effect & drawn each time
        --layers 0 --prefix-dropout => --prefix-dropout has no effect & layer 0
        --prefix-dropout => --prefix-dropout has no effect & layer 0
        --selection lowest.json --no-prefix-dropout => --prefix-dropout has no effect & layer 0
        --ratio 0.5 --activation-cache off --strategy rotating:2@3 => --activation-cache has no effect & rotating
        --layers 0 --shared-prompt => --shared-prompt has no effect & layer 0
        --layers 2,3 --shared-prompt --strategy rotating:1@3 => --shared-prompt has no effect & rotating
        """,
    )
    yield from rows_of(
        SELECT,
        """
        --compat paper --criterion cka => --criterion has no effect & paper
        --compat paper --probe-steps 9 => --probe-steps has no effect & paper
        --compat paper --seed 3 => --seed has no effect & paper
        --modules --budget-params 2k --criterion cka => --criterion has no effect & --modules
        --modules --budget-params 2k --position mean => --position has no effect & --modules
        --modules --budget-params 2k --until-stable 0.9 => --until-stable has no effect & --modules
        --criterion fisher --position mean => --position has no effect & fisher
        --criterion cka@last --position mean => --position has no effect & cka@last
        --criterion fisher --probe-steps 9 => --probe-steps has no effect & fisher
        --criterion last --until-stable 0.9 => --until-stable has no effect & last
        --criterion last --dtype float16 => --dtype has no effect & last
        --criterion random --quantization 4bit => --quantization has no effect & random
        --criterion last --stream => --stream has no effect & last
        --criterion last --max-samples 9 => --max-samples has no effect & last
        --criterion kappa --seed 3 => --seed has no effect & kappa
        --method pissa => --method has no effect & --budget-params
        --rank 4 => --rank has no effect & --objective
        --rank 4 --method full --budget-params 2k => --rank has no effect & full
        --rank 4 --method ia3 --budget-params 2k => --rank has no effect & ia3
        --target-modules query => --target-modules has no effect & --modules
        """,
    )
    yield from rows_of(
        EVALUATE,
        """
        --split test => --split has no effect & rows.jsonl
        --seed 3 => --seed has no effect & --max-samples
        --exact-match 4 => --exact-match has no effect & classification
        --max-new-tokens 9 => --max-new-tokens has no effect & --exact-match
        --config flags-tokens.yaml => --max-new-tokens has no effect & --exact-match
        """,
    )
    yield Bad("evaluate sums-run --data sums.jsonl --wrong 2", ("--wrong has no effect", "instruction"))
    yield from rows_of(
        "",
        """
        predict run --data rows.jsonl --split test => --split has no effect & rows.jsonl
        predict run --data rows.jsonl --max-new-tokens 9 => --max-new-tokens has no effect & classification
        benchmark run --tasks gsm8k --quantization 4bit => --quantization has no effect & run
        benchmark llama --tasks gsm8k --base => --base has no effect & llama
        push run me/x --base-model org/bert --output new => --output has no effect & --dry-run
        compare recipe.yaml --tune each => --tune has no effect & learning_rates
        compare recipe.yaml --tune size => --tune has no effect & learning_rates
        run recipe.yaml --on ray --jobs 2 => --jobs has no effect & --on
        sweep recipe.yaml --on ray --jobs 2 => --jobs has no effect & --on
        compare recipe.yaml --on ray --jobs 2 => --jobs has no effect & --on
        oracle recipe.yaml --on ray --jobs 2 => --jobs has no effect & --on
        run recipe.yaml --gpus 0.5 => --gpus has no effect & --on
        sweep recipe.yaml --gpus 0.5 => --gpus has no effect & --on
        compare recipe.yaml --gpus 0.5 => --gpus has no effect & --on
        oracle recipe.yaml --gpus 0.5 => --gpus has no effect & --on
        advise bert --data rows.jsonl -o new --gpus 1 => --gpus has no effect & --on
        advise bert --data rows.jsonl -o new --on ray => --on has no effect & --trial
        advise bert --data rows.jsonl -o new --devices 3 => batch-size 16 & 3
        advise bert --data rows.jsonl -o new --devices 0 => devices & 0
        advise bert --data rows.jsonl -o new --sharding fsdp => sharding & devices
        advise bert --data rows.jsonl -o new --devices 2 --sharding fsdp --quantization 4bit => fsdp & packed
        advise bert --data rows.jsonl -o new --devices 2 --method adalora => adalora & --devices
        export run --to serving -o served --rank 4 => --rank has no effect & serving
        export run --to serving -o served --rank-of mlp=4 => --rank-of has no effect & serving
        export run --to serving -o served --alpha 4 => --alpha has no effect & serving
        export run --to serving -o served --dropout 0.1 => --dropout has no effect & serving
        export run --to serving -o served --target-modules query => --target-modules has no effect & serving
        export run --to serving -o served --into lora.yaml => --into has no effect & serving
        export run --to serving -o served --model bert => --model has no effect & serving
        export run --to serving -o served --trust-remote-code => --trust-remote-code has no effect & serving
        export selection.json --to peft --into lora.yaml => --into has no effect & Python
        export selection.json --to trl --unfreeze => --unfreeze has no effect & --spectrum
        export --spectrum 0.5 --model bert --to trl --unfreeze --rank 4 => --rank has no effect & --unfreeze
        export --spectrum 0.5 --model bert --to peft --unfreeze => --unfreeze is for & peft
        export --spectrum 0 --model bert --to trl => spectrum 0 & up to 1
        export --spectrum 0.5 --to trl => --spectrum & --model
        export selection.json --spectrum 0.5 --model bert --to trl => --spectrum & one of them
        export modules.json --to axolotl --rank 4 => --rank has no effect & modules.json
        export modules.json --to axolotl --rank-of mlp=4 => --rank-of has no effect & modules.json
        export modules.json --to axolotl --target-modules query => --target-modules has no effect & modules.json
        """,
    )
    # Of recipes, and of what the data are.
    yield from rows_of(
        "run recipe.yaml --set ",
        """
        evaluate.split=validation => evaluate.split has no effect & evaluate.data
        evaluate.max_new_tokens=9 => evaluate.max_new_tokens has no effect & exact_match
        train.warmup_ratio=0.1 --set train.scheduler=constant => train.warmup_ratio has no effect & constant
        train.method=full --set train.rank=4 => train.rank has no effect & full
        model.revision=main => model.revision has no effect & bert
        data.chat_template=template.jinja => chat-template & no effect & classification
        data.source_language=de_DE => source-language & no effect
        """,
    )
    yield Bad("train t5 --data chat.jsonl --ratio 0.5 -o new --target-language de_DE", ("target-language", "no effect"))
    yield Bad("inspect bert --data rows.jsonl --chat-template template.jinja", ("chat-template", "no effect"))
    yield Bad("inspect t5 --data chat.jsonl --chat-template template.jinja", ("chat-template", "no effect", "encoder"))


TABLES = {
    "flags": list(_of_flags()),
    "settings": SETTINGS,
    "models": list(_of_models()),
    "data": list(_of_data()),
    "records": list(_of_records()),
    "exports": list(_of_exports()),
    "predictions": list(_of_predictions()),
    "recipes": list(_of_recipes()),
    "wrong": WRONG,
}
