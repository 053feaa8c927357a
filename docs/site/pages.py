"""Write the pages of the site to .site/pages: those of docs/, README and CONTRIBUTING, and the generated reference.

Links in them fit the repository; here they are made to fit the site. One that leads nowhere ends the build.
"""

import re
import shutil
import sys
from pathlib import Path
from posixpath import normpath, relpath

import reference

ROOT = Path(__file__).parents[2]
DEST = ROOT / ".site" / "pages"
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
}  # pages by their path in the repository
GENERATED = {"reference/profile.md": reference.profile_page, "reference/cli.md": reference.cli_page}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> None:
    shutil.rmtree(DEST, ignore_errors=True)
    shutil.copytree(ROOT / "docs", DEST, ignore=shutil.ignore_patterns("*.md", "site"))
    problems = []
    pages = {name: generate() for name, generate in GENERATED.items()}
    for source in [*FROM_ROOT, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))]:
        pages[page_of(source)], missing = on_site((ROOT / source).read_text("utf-8"), source)
        problems += [f"{source}: leads to {path}, which does not exist" for path in missing]
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page, text in pages.items():
        (DEST / page).write_text(text, encoding="utf-8")
        if f": {page}\n" not in nav:
            problems.append(f"mkdocs.yml: nav lacks {page}")
    if problems:
        sys.exit("\n".join(problems))


def page_of(source: str) -> str:
    """Return the page's path on the site; source: its path in the repository."""
    return FROM_ROOT.get(source) or source.removeprefix("docs/")


def on_site(text: str, source: str) -> tuple[str, list[str]]:
    """Return a page with links for the site, and the paths it leads to that do not exist.

    If the text of a link is the name of its file, the page's title replaces the text. If the file is not a page of the
    site, the text replaces the link.
    """
    missing: list[str] = []

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        path = normpath(f"{Path(source).parent.as_posix()}/{path}")
        if not (ROOT / path).exists() and page_of(path) not in GENERATED:
            missing.append(path)
        if path in FROM_ROOT or path.startswith("docs/"):
            here = Path(page_of(source)).parent.as_posix()
            if label.endswith(".md"):
                label = title(ROOT / path)
            return f"{image}[{label}]({relpath(page_of(path), here)}{hash_}{anchor})"
        return label

    return LINK.sub(link, text), missing


def title(page: Path) -> str:
    return page.read_text("utf-8").partition("\n")[0].removeprefix("# ")


if __name__ == "__main__":
    main()
