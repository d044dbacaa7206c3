// The side bar's arrows have no text of their own: name them for screen readers.
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("nav summary").forEach((arrow) => {
  arrow.setAttribute("aria-label", "show or hide the pages below");
}));
