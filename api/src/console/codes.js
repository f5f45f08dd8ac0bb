// What a code means, what is safe and what to do: the part of the page on troubleshooting that has its name.

import { el } from "./dom.js";
import { empty, loading, trouble } from "./forms.js";
import { Problem } from "./api.js";

let page = null;

export async function codeView(main, [wanted], signal) {
  const place = el("div", {}, loading("Explanation"));
  main.append(el("h1", {}, wanted), place);
  try {
    if (page === null) page = await fetched(signal);
    const part = parts(page).get(wanted);
    place.replaceChildren(
      ...(part === undefined ? [empty("This release has no explanation of this code.")] : drawn(part)),
    );
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(trouble(error));
  }
}

async function fetched(signal) {
  const response = await fetch("console/troubleshooting.md", { signal, credentials: "omit" });
  if (!response.ok) throw new Problem(response.status, { detail: "the explanations cannot be read" });
  return response.text();
}

// Texts by their headings of the third level.
function parts(text) {
  const found = new Map();
  for (const part of text.split(/^### /m).slice(1)) {
    const [name, ...rest] = part.split("\n");
    found.set(name.replace(/`/g, "").trim(), rest.join("\n").split(/^#+ /m)[0].trim());
  }
  return found;
}

// As much of Markdown as the page uses: paragraphs, lists, blocks of code, and what stands out within a line.
function drawn(text) {
  return text.split(/^(```[^]*?^```)/m).flatMap(piece => {
    if (piece.startsWith("```")) return [el("pre", {}, piece.replace(/^```.*\n|\n```$/g, ""))];
    return piece
      .split(/\n{2,}|\n(?=\*\*(?:Safe|Do):)/)
      .filter(block => block.trim() !== "")
      .map(block => {
        const lines = block.trim().split("\n");
        const mark = /^(?:[-*]|\d+\.) /;
        if (!mark.test(lines[0])) return el("p", {}, inline(block.trim()));
        return el(
          /^\d/.test(lines[0]) ? "ol" : "ul",
          {},
          lines.map(line => el("li", {}, inline(line.replace(mark, "")))),
        );
      });
  });
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*]+\*|\[[^\]]+\]\([^)]*\))/).map(piece => {
    if (piece.startsWith("`")) return el("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return el("strong", {}, piece.slice(2, -2));
    if (piece.startsWith("*") && piece.length > 2) return el("em", {}, piece.slice(1, -1));
    // Its target is another page of the documentation, which is not here.
    if (piece.startsWith("[")) return piece.slice(1, piece.indexOf("]("));
    return piece.replace(/\n/g, " ");
  });
}
