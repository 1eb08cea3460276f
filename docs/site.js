// Tables that scroll can be reached by the keyboard.
new MutationObserver(() => {
  for (const area of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])"))
    if (area.scrollWidth > area.clientWidth) area.tabIndex = 0;
}).observe(document.body, { childList: true, subtree: true });
