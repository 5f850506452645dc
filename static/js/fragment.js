// The code of an invitation stands behind the # of its link, so that no server but ours, no log and no referrer ever has
// it. It is moved into the form and out of the address, which the browser's history keeps.
const form = document.querySelector('form[data-fragment]');
const field = form?.elements[form.dataset.fragment];
if (field && location.hash.length > 1) {
  field.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, '', location.pathname + location.search);
}
