// Check is Concourse's check of a locker-resource: it looks for new versions of the lock.
package main

import "github.com/cloudfoundry-community/locker/resource"

func main() { resource.Main(resource.Check) }
