// Stands for zarrita, of which nothing is used here: these names are what NiiVue would call.
const unused = (): never => { throw new Error("zarr isn't read here"); };
export { unused as FetchStore, unused as get, unused as open, unused as root, unused as slice };
