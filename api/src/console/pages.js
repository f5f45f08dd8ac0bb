// A list that is too long to be read whole: its first page, and one more with each wish.

import { button, el } from "./dom.js";
import { attempt } from "./forms.js";

// `read` gives the page of a token, `draw` shows all items that were read, with the last answer.
export async function readPages(place, key, read, draw) {
  const items = [];
  let token = "";
  const [shown, end] = [el("div"), el("div")];
  const more = button("Show more", () => next(), { id: "more" });
  place.replaceChildren(shown, end);
  const next = () =>
    attempt(end, [more], async () => {
      const answer = await read(token);
      items.push(...answer[key]);
      token = answer.next_page_token ?? "";
      shown.replaceChildren(draw(items, answer));
      return token === "" ? undefined : el("div", { class: "buttons" }, more);
    });
  await next();
}

// Asked for with what a list's address needs to lead to the page of a token.
export const pageOf = (target, token) =>
  `${target}?page_size=100${token === "" ? "" : `&page_token=${encodeURIComponent(token)}`}`;
