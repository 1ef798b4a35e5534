// Package interop compares the library with a stand-in for the Python module
// whose snapshots it reads and writes. It has no code but its tests, which need
// python3.
package interop
