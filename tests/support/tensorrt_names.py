"""Checks the TensorRT names in our source against the real libraries, without a GPU.

The bindings wheel of TensorRT imports with hollow shared libraries, and then tells every class and signature.
``problems`` follows types through a source, from annotations and signatures, and says which names, keywords and
argument counts a library lacks. What ``hasattr(x, "name")`` or ``backend.ahead_of_time`` guards is held only against
libraries that get there. Not covered: values, elements of containers, names computed at run time.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# All that the 11.4 bindings take from them; when a later wheel needs more, its import error says what.
SYMBOLS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL
createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry
initLibNvInferPlugins
"""

# {"name": library and version, "classes": {class, or "" for the module: {member: [kind, type or signatures...]}}}
Api = dict[str, Any]


def stub_tensorrt(folder: Path) -> dict[str, str]:
    """Build hollow TensorRT libraries; returns the environment in which the bindings find them."""
    source = folder / "hollow.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS.split()))
    for library in LIBRARIES:
        target = folder / f"lib{library}.so.11"
        subprocess.run([shutil.which("cc") or "gcc", "-shared", "-fPIC", "-o", target, source], check=True)
    return {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")}


def api(module_name: str, env: dict[str, str]) -> Api:
    """A library's public names, read in another process: the loader's path is fixed at start."""
    command = [sys.executable, "-P", __file__, module_name]
    done = subprocess.run(command, env=os.environ | env, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def _dump(module: Any) -> Api:
    classes: dict[str, dict[str, list[str]]] = {}
    todo = [("", module)]
    while todo:
        name, owner = todo.pop()
        classes[name] = members = {}
        for key in dir(owner):
            value, raw = getattr(owner, key), inspect.getattr_static(owner, key)
            if inspect.ismodule(value) or (key[0] == "_" and key not in ("__init__", "__name__", "__version__")):
                continue
            if inspect.isclass(value):
                members[key] = ["class", value.__qualname__]
                todo += [(value.__qualname__, value)] if "tensorrt" in value.__module__ else []
            elif isinstance(raw, property):
                kind = "property" if raw.fset else "read-only property"
                members[key] = [kind, *re.findall(r"-> (.*)", raw.fget.__doc__ or "")[:1]]
            elif inspect.isroutine(value):
                line = re.compile(rf"^(?:\d+\. )?{key}(\(.*\) -> .*)", re.MULTILINE)
                python = [str(inspect.signature(value))] if inspect.isfunction(value) else []
                members[key] = ["method", *(line.findall(value.__doc__ or "") or python)]
            else:
                members[key] = ["value", type(value).__qualname__]
    version = ".".join(module.__version__.split(".")[:2])
    return {"name": f"{module.__name__.removesuffix('_bindings')} {version}", "classes": classes}


def _signature(text: str, bound: bool) -> inspect.Signature:
    """Pybind writes Python but for C++ types and enum defaults (<Severity.WARNING: 2>)."""
    text = re.sub(r"<[^<>]*>", "[0]", text).replace("::", ".")
    scope: dict[str, Any] = {"function": lambda *_, **__: None}
    with suppress(SyntaxError):  # a few are invalid, as add_scale_nd: anything goes there
        exec(f"from __future__ import annotations\ndef function{text}: ...", scope)
    signature = inspect.signature(scope["function"])
    drop = bound and text.startswith(("(self", "(this"))  # a static method has neither
    return signature.replace(parameters=list(signature.parameters.values())[drop:])


class Value(NamedTuple):
    """What is known of an expression. A function of ours stands for what it returns."""

    kind: str  # TensorRT's class, object, method; true, false: a decided hasattr; other; unknown
    name: str = ""  # Class or Class.method; object "" is the module
    signatures: tuple[inspect.Signature, ...] = ()


TRT, TRUE, FALSE = Value("object"), Value("true"), Value("false")
OTHER, UNKNOWN = Value("other"), Value("unknown")
SCOPES = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.Module)
JUMPS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class _Reading:
    """One source read with one library. A name keeps one type in a function, as mypy demands."""

    def __init__(self, library: Api, source: str, asked: dict[str, bool]) -> None:
        self.label, self.classes = library["name"], library["classes"]
        self.asked = asked  # sentence about a guarded name -> does any library have the name?
        # Without an underscore (`name`, `shape`) a name does not tell TensorRT's from ours.
        self.telling = {n for c in self.classes.values() for n in c if "_" in n.strip("_")}
        # Annotations lose their quotes, so that they are syntax as well.
        tree = ast.parse(re.sub(r'([:>] )"([\w.\[\], |]*\btrt\.[\w.\[\], |]*)"', r"\1\2", source))
        self.scope: dict[ast.AST | None, ast.AST | None] = {tree: None}
        for node in ast.walk(tree):
            for part in ast.iter_child_nodes(node):
                self.scope[part] = node if isinstance(node, SCOPES) else self.scope[node]
        notes = [getattr(n, key, None) for n in ast.walk(tree) for key in ("annotation", "returns")]
        self.notes = {part for note in notes if note for part in ast.walk(note)}
        # Attributes of our own objects are under scope None: one type for a name in the whole file.
        self.names: dict[tuple[ast.AST | None, str], Value] = {}
        for _ in range(4):  # each round follows one more assignment of what another one made
            for node in ast.walk(tree):
                self.bind(node)
        self.used: set[str] = set()
        self.found: list[str] = []
        todo: list[ast.AST] = [tree]
        for node in todo:
            self.check(node)
            dead = set(self.dead(node))
            todo += [part for part in ast.iter_child_nodes(node) if part not in dead]

    def bind(self, node: ast.AST) -> None:
        """Note the types of the names that a node binds."""
        match node:
            case ast.Assign(targets=targets, value=made):
                bound = [(ast.unparse(target), self.value(made)) for target in targets]
            case ast.AnnAssign(target=target, annotation=note):
                bound = [(ast.unparse(target), self.annotation(note))]
            case ast.arg(arg=name, annotation=note) | ast.FunctionDef(name=name, returns=note):
                bound = [(name, self.annotation(note))]
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound = [(n.asname or n.name, OTHER) for n in names]
            case _:
                return
        scope = self.scope[node]
        for name, value in bound:
            if value.kind in ("class", "object", "method") or not isinstance(node, ast.Assign):
                own = "." in name or isinstance(scope, ast.ClassDef)
                self.names.setdefault((None if own else scope, name.rpartition(".")[2]), value)

    def annotation(self, note: ast.expr | None) -> Value:
        text = ast.unparse(note) if note else "Any"
        if text.startswith("trt."):
            return self.named(text)
        return UNKNOWN if text in ("Any", "object") else OTHER

    def named(self, text: str) -> Value:
        """The class that a signature names, also by its C++ name (nvonnxparser::IParserError)."""
        parts = text.removesuffix(" | None").split(".")
        names = [".".join(parts[i:]) for i in range(len(parts))] + [parts[-1][1:]]
        return next((Value("object", n) for n in names if n and n in self.classes), OTHER)

    def member(self, base: Value, name: str) -> Value:
        """What `base.name` is: FALSE if the library has no such name."""
        kind, *texts = self.classes[base.name].get(name, ["missing"])
        if kind == "missing":
            return FALSE
        if kind == "method":
            signatures = [_signature(text, base.kind == "object") for text in texts]
            return Value("method", f"{base.name}.{name}".lstrip("."), tuple(signatures))
        known = self.named(texts[0].replace("::", ".")) if texts else OTHER
        return Value("class", known.name) if kind == "class" and known.name else known

    def value(self, node: ast.AST | None) -> Value:
        match node:
            case ast.Name(id="trt") | ast.Attribute(attr="trt"):
                return TRT
            case ast.Attribute(attr="ahead_of_time"):  # our Backend's: true of TensorRT-RTX, and of it alone
                return TRUE if self.label.startswith("tensorrt_rtx") else FALSE
            case ast.Name(id="self" | "cls"):
                return OTHER
            case ast.Name(id=name):
                scope = self.scope[node]
                while scope and (scope, name) not in self.names:
                    scope = self.scope[scope]
                return self.names.get((scope, name), UNKNOWN) if scope else UNKNOWN
            case ast.Attribute(value=owner, attr=name):
                base = self.value(owner)
                if base.kind in ("class", "object"):
                    return self.member(base, name)
                return self.names.get((None, name), UNKNOWN)
            case ast.Call(ast.Name("hasattr" | "getattr" as ask), [x, ast.Constant(str(name)), *_]):
                found = self.value(ast.Attribute(x, name))
                if ask == "hasattr" and self.value(x).kind in ("class", "object"):
                    return FALSE if found == FALSE else TRUE
                return OTHER if found == FALSE else found
            case ast.Call(func=function):
                called = self.value(function)
                if called.kind == "method":
                    return self.named(str(called.signatures[0].return_annotation))
                return Value("object", called.name) if called.kind == "class" else called
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return {TRUE: FALSE, FALSE: TRUE}.get(self.value(operand), OTHER)
            case ast.BoolOp(op=op, values=values):
                ends = TRUE if isinstance(op, ast.Or) else FALSE
                return ends if ends in map(self.value, values) else OTHER
        return OTHER

    def dead(self, node: ast.AST) -> Iterator[ast.AST]:
        """What this library never runs, going by the answers to `hasattr`."""
        match node:
            case ast.If() | ast.IfExp():
                arm = {TRUE: node.orelse, FALSE: node.body}.get(self.value(node.test), [])
                yield from arm if isinstance(arm, list) else [arm]
            case ast.BoolOp(op=op, values=values):
                ends = TRUE if isinstance(op, ast.Or) else FALSE
                yield from values[[*map(self.value, values), ends].index(ends) + 1 :]
        for block in (getattr(node, "body", []), getattr(node, "orelse", [])):
            for i, step in enumerate(block if isinstance(block, list) else []):
                if isinstance(step, ast.If) and isinstance(step.body[-1], JUMPS):
                    yield from block[i + 1 :] if self.value(step.test) == TRUE else []

    def say(self, node: Any, text: str) -> None:
        self.found.append(f"line {node.lineno}: {text} in {self.label}")

    def check(self, node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=owner, attr=name):
                self.exists(node, owner, name)
            case ast.Call(ast.Name("hasattr" | "getattr"), [owner, ast.Constant(str(name)), *_]):
                self.exists(node, owner, name, guarded=True)
            case ast.Call():
                self.call(node)
            case ast.ClassDef(bases=bases):
                for base in map(self.value, bases):
                    if base.kind == "class":
                        self.overrides(node, base)

    def exists(self, node: Any, owner: ast.expr, name: str, guarded: bool = False) -> None:
        base, text = self.value(owner), f"{ast.unparse(owner)}.{name}"
        if base.kind in ("class", "object"):
            kind = self.classes[base.name].get(name, [""])[0]
            sentence = f"{text}: {base.name or 'the module'} has no such member"
            if guarded or node in self.notes:  # no library need have all that annotations mention
                key = f"line {node.lineno}: {sentence}"
                self.asked[key] = bool(kind) or self.asked.get(key, False)
            elif not kind:
                self.say(node, sentence)
            elif isinstance(node.ctx, ast.Store) and kind != "property":
                self.say(node, f"{text}: {base.name} does not let it be assigned")
            self.used |= {f"{base.name}.{name}".lstrip(".")} if kind else set()
        elif base == UNKNOWN and name in self.telling and not guarded:
            self.say(node, f"{text}: annotate {ast.unparse(owner)}, its class is not known")

    def call(self, node: ast.Call) -> None:
        function = self.value(node.func)
        if function.kind == "class":
            function = self.member(Value("object", function.name), "__init__")
        args = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
        named = {word.arg: word for word in node.keywords if word.arg}
        loose = len(args) + len(named) < len(node.args) + len(node.keywords)
        for signature in function.signatures:
            with suppress(TypeError):
                (signature.bind_partial if loose else signature.bind)(*args, **named)
                return
        if function.kind == "method":
            takes = " or ".join(f"({', '.join(s.parameters)})" for s in function.signatures)
            self.say(node, f"{ast.unparse(node)}: {function.name} takes {takes or 'no call'}")

    def overrides(self, node: ast.ClassDef, base: Value) -> None:
        own = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef) and f.name[0] != "_"}
        for name, function in own.items():
            inherited = self.member(base, name).signatures
            wanted = ", ".join(inherited[0].parameters) if inherited else ""
            try:
                _signature(f"({ast.unparse(function.args)})", False).bind(*inherited[0].parameters)
            except (IndexError, TypeError):
                calls = f"calls it with ({wanted})" if wanted else "has no such method"
                self.say(function, f"{node.name}.{name}: {base.name} {calls}")
        if base.name == "IProgressMonitor":  # whose methods are all pure
            for name in sorted({"phase_finish", "phase_start", "step_complete"}.difference(own)):
                self.say(node, f"{node.name}: {base.name} calls its {name}, which is missing,")


def used_names(source: str, library: Api) -> set[str]:
    """The names of a library that a source uses: "Builder.create_network", "BuilderFlag.REFIT"."""
    return _Reading(library, source, {}).used


def problems(source: str, *libraries: Api) -> list[str]:
    """What a source uses that a library lacks; a guarded name must be in one of the libraries."""
    asked: dict[str, bool] = {}
    found = [text for library in libraries for text in _Reading(library, source, asked).found]
    nowhere = " or ".join(library["name"] for library in libraries)
    return found + [f"{sentence} in {nowhere}" for sentence, there in asked.items() if not there]


if __name__ == "__main__":
    json.dump(_dump(importlib.import_module(sys.argv[1])), sys.stdout)
