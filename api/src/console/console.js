// The page: who is looking at it, and which view the address names. A view draws into `main` and ends with its signal.

import { events, me, signIn, signInAgain, signOut } from "./api.js";
import { auditView } from "./audit.js";
import { codeView } from "./codes.js";
import { button, el } from "./dom.js";
import { attempt, empty, field, form, trouble } from "./forms.js";
import { maintenanceView } from "./maintenance.js";
import { operationView, operationsView } from "./operations.js";
import { overview } from "./overview.js";
import { passView } from "./pass.js";
import { quarantineView } from "./quarantine.js";
import { rollbackView } from "./rollback.js";
import { tableView } from "./table.js";
import { verificationView } from "./verification.js";
import { forget, look } from "./watch.js";

const VIEWS = [
  ["", "Overview", overview],
  ["tables/*/*", "Table", tableView],
  ["tables/*/*/quarantine", "Quarantine", quarantineView],
  ["rollback/*", "Roll back", rollbackView],
  ["operations", "Operations", operationsView],
  ["operations/*", "Operation", operationView],
  ["maintenance", "Maintenance", maintenanceView],
  ["maintenance/*", "Pass", passView],
  ["verifications/*", "Verification", verificationView],
  ["audit", "Audit", auditView],
  ["codes/*", "Code", codeView],
];
const MAIN = document.getElementById("main");
// Address, name, and the only role that has the view, where not all have.
const NAVIGATION = [
  ["#/", "Overview"],
  ["#/operations", "Operations"],
  ["#/maintenance", "Maintenance"],
  ["#/audit", "Audit", "admin"],
];

let leaving = new AbortController();
// Whose view it is, also while their token has run out.
let viewer = null;

function show() {
  if (me === null) return askWho();
  leaving.abort();
  leaving = new AbortController();
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let parts;
  try {
    parts = path.split("/").map(decodeURIComponent);
  } catch {
    parts = ["?"];
  }
  const fits = pattern => {
    const wanted = pattern.split("/");
    return wanted.length === parts.length && wanted.every((part, place) => part === "*" || part === parts[place]);
  };
  const [pattern, name, view] = VIEWS.find(([pattern]) => fits(pattern)) ?? [null, "Not here", nowhere];
  const named = (pattern ?? "").split("/").flatMap((part, place) => (part === "*" ? [parts[place]] : []));
  document.title = `${[...named.slice(-1), name].join(" · ")} · lakehouse`;
  // A place of its own: what a view that was left still draws is drawn into nothing.
  const place = el("div");
  MAIN.replaceChildren(place);
  frame();
  view(place, named, leaving.signal, new URLSearchParams(query)).catch(error => {
    if (error.name !== "AbortError") place.append(trouble(error));
  });
  window.scrollTo(0, 0);
}

async function nowhere(main) {
  main.append(el("h1", {}, "Not here"), empty("This console has no such view."));
}

// What stands around each view.
function frame() {
  const [views, who] = ["views", "viewer"].map(id => document.getElementById(id));
  views.replaceChildren();
  who.replaceChildren();
  if (me === null) return;
  viewer = me.principal;
  const here = (location.hash || "#/").split("?")[0];
  const own = NAVIGATION.filter(([, , role]) => role === undefined || role === me.role);
  views.append(...own.map(([href, name]) => el("a", { href, "aria-current": href === here && "page" }, name)));
  const tables = me.tables.includes("*.*") ? "all tables" : me.tables.join(", ");
  const role = el("span", { class: "quiet" }, `role ${me.role}, ${tables}`);
  who.append(el("span", {}, viewer, " ", role), " ", button("Sign out", leave, { class: "small" }));
}

function leave() {
  signOut();
  forget();
  leaving.abort();
  askWho();
}

function whoForm(done) {
  const place = el("div");
  const token = el("input", {
    type: "password",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    name: "token",
  });
  const isKept = el("input", { type: "checkbox", name: "kept" });
  const enter = el("button", { type: "submit", class: "main" }, "Sign in");
  const without = button("Without a token", () =>
    attempt(place, [enter, without], async () => {
      await signIn("", false);
      done();
    }),
  );
  return form(
    () =>
      attempt(place, [enter, without], async () => {
        await signIn(token.value.trim(), isKept.checked);
        token.value = "";
        done();
      }),
    field("Token", token, "One of [api.auth]. It stays in this tab and is sent to this service only."),
    el("label", { class: "box" }, isKept, " Keep it until the tab is closed, over a reload"),
    el("div", { class: "buttons" }, enter, without),
    window.isSecureContext
      ? null
      : el(
          "p",
          { class: "note" },
          "This page has come over plain HTTP from another machine: who is on the way can read the token. Use a proxy that ends TLS.",
        ),
    place,
  );
}

function askWho() {
  document.title = "Sign in · lakehouse";
  frame();
  MAIN.replaceChildren(el("div", { class: "narrow" }, el("h1", {}, "Sign in"), whoForm(show)));
  MAIN.querySelector("[name=token]").focus();
}

// A token that has run out: whoever comes back in finds what they had typed, and anybody else a view of their own.
events.addEventListener("out", () => {
  const dialog = el("dialog", { "aria-label": "Sign in again", close: () => dialog.remove() });
  const goOn = () => {
    dialog.close();
    if (me.principal === viewer) return frame();
    forget();
    look();
    show();
  };
  dialog.append(el("h2", {}, "Sign in again"), el("p", {}, "The service no longer takes the token."), whoForm(goOn));
  document.body.append(dialog);
  dialog.showModal();
});

document.querySelector(".skip").addEventListener("click", event => {
  // Its address would be taken for a view's.
  event.preventDefault();
  MAIN.focus();
});
window.addEventListener("hashchange", () => {
  show();
  if (me !== null) MAIN.focus({ preventScroll: true });
});

// A token that the tab has kept is tried once; where the service cannot be asked, it stays for the next reload.
signInAgain().then(
  isIn => (isIn ? show() : askWho()),
  error => {
    askWho();
    MAIN.append(trouble(error));
  },
);
